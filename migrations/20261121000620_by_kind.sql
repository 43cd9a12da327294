-- no-transaction
-- `job_by_kind_and_queue` serves all that it served.
DROP INDEX CONCURRENTLY job_by_kind;
