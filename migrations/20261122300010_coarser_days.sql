-- A day by hours, and as one, for readers who ask for no smaller part of it: of percentiles and uniques 96 buckets are a hundred times as
-- many bytes. As `body`, with fewer buckets; not there: read `body`.
ALTER TABLE metric_day ADD COLUMN hours bytea, ADD COLUMN whole bytea;
ALTER TABLE metric_day ALTER COLUMN hours SET STORAGE EXTERNAL, ALTER COLUMN whole SET STORAGE EXTERNAL;

-- A program that knows nothing of them changes the buckets alone: what it leaves behind is not what the day came to.
CREATE FUNCTION forget_coarser_day() RETURNS trigger
    LANGUAGE plpgsql SET search_path = public, pg_temp
    AS $$
BEGIN
    IF NEW.whole IS NOT DISTINCT FROM OLD.whole THEN
        NEW.whole := NULL;
        NEW.hours := NULL;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER forget_coarser_day BEFORE UPDATE OF body ON metric_day
    FOR EACH ROW WHEN (OLD.whole IS NOT NULL) EXECUTE FUNCTION forget_coarser_day();
