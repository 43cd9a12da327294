-- Events of products, and what was taken of them: each id once.

-- Ids that were taken. By weeks of arrival, so that forgetting is dropping a table and no id is forgotten before 7 days are over: an id is
-- looked for in this week's and last week's.
CREATE TABLE event_seen (
    tenant_id integer NOT NULL,
    id        uuid NOT NULL,        -- the event's own id where that is a UUID, else of its hash
    week      date NOT NULL,        -- the Monday (UTC) of its arrival
    PRIMARY KEY (tenant_id, id, week)
) PARTITION BY RANGE (week);

-- The events, by day of their own time. What reads them reads days, whole: nothing but erasure needs an index.
CREATE TABLE event (
    tenant_id  integer NOT NULL,
    id         text COLLATE "C" NOT NULL,
    type       text COLLATE "C" NOT NULL,
    user_id    text COLLATE "C",
    time       timestamptz NOT NULL,
    taken_at   timestamptz NOT NULL,
    properties jsonb NOT NULL
) PARTITION BY RANGE (time);
CREATE INDEX event_by_user ON event (tenant_id, user_id) WHERE user_id IS NOT NULL;
-- Rows come in the order of time, more or less: a block's range is narrow, and an entry for 128 of them costs nothing.
CREATE INDEX event_by_time ON event USING brin (time);

-- Makes the partitions of some days and weeks where they are missing. Attached rather than created in place, which would hold up every
-- reader and writer of the whole.
CREATE FUNCTION prepare_events(days date[], weeks date[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public AS $$
DECLARE
    one date;
    name text;
BEGIN
    IF cardinality(days) > 1000 OR cardinality(weeks) > 10 THEN
        RAISE EXCEPTION 'too many partitions at once';
    END IF;
    -- Several programs may find the same one missing.
    PERFORM pg_advisory_xact_lock(hashtext('prepare_events'));
    FOREACH one IN ARRAY days LOOP
        name := 'event_d' || to_char(one, 'YYYYMMDD');
        IF to_regclass('public.' || name) IS NULL THEN
            EXECUTE format('CREATE TABLE public.%I (LIKE public.event INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
            EXECUTE format('ALTER TABLE public.event ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', name,
                one::text || ' 00:00:00+00', (one + 1)::text || ' 00:00:00+00');
        END IF;
    END LOOP;
    FOREACH one IN ARRAY weeks LOOP
        name := 'event_seen_w' || to_char(one, 'YYYYMMDD');
        IF to_regclass('public.' || name) IS NULL THEN
            EXECUTE format('CREATE TABLE public.%I (LIKE public.event_seen INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
            EXECUTE format('ALTER TABLE public.event_seen ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', name, one, one + 7);
        END IF;
    END LOOP;
END
$$;

-- Drops the partitions of days and weeks that are over; answers how many. One at a time, and it waits for nobody: the next sweep comes
-- soon.
CREATE FUNCTION drop_events(before_day date, before_week date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public SET lock_timeout = '500ms' AS $$
DECLARE
    name text;
BEGIN
    SELECT c.relname INTO name
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE (i.inhparent = 'public.event'::regclass AND c.relname < 'event_d' || to_char(before_day, 'YYYYMMDD'))
       OR (i.inhparent = 'public.event_seen'::regclass AND c.relname < 'event_seen_w' || to_char(before_week, 'YYYYMMDD'))
    ORDER BY c.relname LIMIT 1;
    IF name IS NULL THEN
        RETURN 0;
    END IF;
    EXECUTE format('DROP TABLE public.%I', name);
    RETURN 1;
END
$$;

REVOKE ALL ON FUNCTION prepare_events(date[], date[]), drop_events(date, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prepare_events(date[], date[]) TO offstage_api, offstage_engine;
GRANT EXECUTE ON FUNCTION drop_events(date, date) TO offstage_engine;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['event_seen', 'event'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
        EXECUTE format('GRANT SELECT, INSERT ON %I TO offstage_api', name);
    END LOOP;
END
$$;
