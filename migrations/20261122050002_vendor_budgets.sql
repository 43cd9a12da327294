-- How many calls vendors still grant, for the fleet (`shared/src/ledger/vendors`). Of no tenant: what is granted without a credential is
-- granted to the installation's address.
CREATE TABLE vendor_budget (
    key           text COLLATE "C" PRIMARY KEY, -- the vendor, and the credential's hash, route or bucket; never a credential
    vendor        text NOT NULL,
    most          integer,                      -- calls of a window, as the vendor says or is documented
    remaining     integer,                      -- of this window
    resets_at     timestamptz,                  -- its end
    blocked_until timestamptz,                  -- no call before
    refusals      integer NOT NULL DEFAULT 0,   -- limits in a row that said nothing of when
    bucket        text,                         -- of a route: whose limits are its own
    invalid       integer NOT NULL DEFAULT 0,   -- answers that count towards a ban
    invalid_from  timestamptz,                  -- since when they are counted
    taken_by      uuid,                         -- the one call under way
    taken_until   timestamptz,                  -- by Postgres' clock
    changed_at    timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX vendor_budget_age ON vendor_budget (changed_at);
ALTER TABLE vendor_budget ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY vendor_budget_engine ON vendor_budget TO offstage_engine USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON vendor_budget TO offstage_engine;
