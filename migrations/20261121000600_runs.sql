-- A job's runs, the one that succeeded among them.
--
-- A success is the end of its job, and all there is to say of it stands in `job_state` already: to write it into `job_attempt` too
-- would be a row and a key for each job that goes well, which most do. So `job_attempt` holds the runs that ended otherwise, and
-- successes written by workers of before.
CREATE VIEW job_run WITH (security_invoker = true) AS
    SELECT job_id, run, attempt, tenant_id, started_at, finished_at, worker, outcome, error FROM job_attempt
    UNION ALL
    SELECT s.job_id, s.runs, s.attempt, s.tenant_id, s.started_at, s.finished_at, s.worker, 'succeeded', NULL
    FROM job_state s
    WHERE s.state = 3 AND NOT EXISTS (SELECT FROM job_attempt a WHERE a.job_id = s.job_id AND a.run = s.runs);

GRANT SELECT ON job_run TO offstage_api, offstage_engine;
