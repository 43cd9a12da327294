-- Statistics of other people's services (`shared/src/ledger/statistics`): as they stand, and as they were.

-- One row a statistic of a manifest, made when somebody first asks for it.
CREATE TABLE statistic (
    tenant_id     integer NOT NULL REFERENCES tenant (id),
    source        text COLLATE "C" NOT NULL,    -- its name in the manifest
    version       bigint NOT NULL DEFAULT 1,    -- grows with whatever a reader would see
    asked         bytea,                        -- SHA-256 of what is asked for, and with which credential: a tag is of that alone
    figures       jsonb,                        -- the last that was believed; kept while the vendor is away
    activity      text,
    worked_at     timestamptz,                  -- when something was last done there, where the vendor tells
    measured_at   timestamptz,                  -- when the vendor last said that the figures are so
    changed_at    timestamptz,                  -- when it first said so
    checked_at    timestamptz,                  -- when an attempt last ended, however
    etag          text,
    last_modified text,
    moved_to      text,                         -- where it was moved to for good
    gone_at       timestamptz,                  -- since when the vendor says that there is no such thing
    failing_since timestamptz,
    failures      integer NOT NULL DEFAULT 0,   -- attempts in a row that brought nothing
    failure_code  text,
    failure       text,
    not_before    timestamptz,                  -- when the vendor may be asked again, by its own word
    flagged       jsonb,                        -- a reading that was not believed
    flagged_at    timestamptz,
    flagged_why   text,
    read_ahead_at timestamptz,                  -- when a reader last had it refreshed
    wished_from   timestamptz,                  -- the hour in which refreshes were wished
    wished        integer NOT NULL DEFAULT 0,
    lease         uuid,                         -- the run that asks just now
    leased_until  timestamptz,                  -- by Postgres' clock
    PRIMARY KEY (tenant_id, source)
) WITH (fillfactor = 50);

-- What was believed, when it was different from before, and once a day.
CREATE TABLE statistic_reading (
    tenant_id   integer NOT NULL,
    source      text COLLATE "C" NOT NULL,
    measured_at timestamptz NOT NULL,
    figures     jsonb NOT NULL,
    activity    text NOT NULL,
    accepted    boolean NOT NULL DEFAULT false, -- by a person, although it was flagged
    PRIMARY KEY (tenant_id, source, measured_at)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['statistic', 'statistic_reading'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;
-- A request asks for a refresh, and accepts what was flagged; it measures nothing.
GRANT SELECT, INSERT ON statistic, statistic_reading TO offstage_api;
GRANT UPDATE (version, read_ahead_at, wished_from, wished, figures, activity, worked_at, measured_at, changed_at, etag, last_modified, gone_at,
              flagged, flagged_at, flagged_why) ON statistic TO offstage_api;
