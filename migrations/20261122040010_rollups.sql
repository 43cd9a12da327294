-- What is counted of events.

-- A metric as it is declared: another declaration has another series. Its row is what compaction and rebuilding of the series take turns by.
CREATE TABLE metric_series (
    tenant_id  integer NOT NULL,
    series     uuid NOT NULL,
    metric     text NOT NULL,
    user_place smallint,                        -- where among the labels the user's is
    is_whole   boolean NOT NULL DEFAULT false,  -- events that were there before the metric are counted too
    version    bigint NOT NULL DEFAULT 0,       -- raised by each who changes its days: whoever read them before must read again
    rebuild    uuid,                            -- the job that counts them
    seen_at    timestamptz NOT NULL,            -- since when the manifest declares it
    retired_at timestamptz,                     -- since when it does not
    PRIMARY KEY (tenant_id, series)
);

-- What commits added, not yet put together. Only ever inserted, so that busy buckets are nobody's to wait for.
CREATE TABLE metric_partial (
    tenant_id integer NOT NULL,
    series    uuid NOT NULL,
    id        bigint GENERATED ALWAYS AS IDENTITY,
    taken_at  timestamptz NOT NULL,
    body      bytea NOT NULL,
    PRIMARY KEY (tenant_id, series, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
-- Read once: to compress it costs more than to write it.
ALTER TABLE metric_partial ALTER COLUMN body SET STORAGE EXTERNAL;

-- A UTC day of one group: 96 buckets of 15 minutes in one row. Kept once for each set of dimensions (`grouping`: bit 0 is the first one), so
-- that what is not grouped is not added up from what is.
CREATE TABLE metric_day (
    tenant_id integer NOT NULL,
    series    uuid NOT NULL,
    grouping  smallint NOT NULL,
    day       date NOT NULL,
    labels    text COLLATE "C" NOT NULL,        -- of the dimensions in `grouping`, as a JSON array
    user_id   text COLLATE "C",                 -- the label of the dimension `user`, by which erasure finds it
    body      bytea NOT NULL,
    PRIMARY KEY (tenant_id, series, grouping, day, labels)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX metric_day_by_user ON metric_day (tenant_id, user_id) WHERE user_id IS NOT NULL;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['metric_series', 'metric_partial', 'metric_day'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
        EXECUTE format('GRANT SELECT ON %I TO offstage_api', name);
    END LOOP;
END
$$;
GRANT INSERT ON metric_partial TO offstage_api;
