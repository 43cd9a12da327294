-- A lock on the tables of jobs (a migration, an operator's LOCK TABLE) must not hold up acceptance for as long as it lasts: the
-- caller is told to come back while it still listens, and the API's connections stay free for others. Set on the function
-- because the API's sessions hold no settings of their own.
--
-- By name and not by signature, so that it holds whatever arguments the function has by then.
DO $$
DECLARE
    accept regprocedure;
BEGIN
    FOR accept IN SELECT oid::regprocedure FROM pg_proc WHERE proname = 'accept_jobs' AND pronamespace = 'public'::regnamespace LOOP
        EXECUTE format('ALTER FUNCTION %s SET lock_timeout = ''4s''', accept);
    END LOOP;
END
$$;
