-- What a model said stands with its call in the effect ledger, so that no rerun pays for it twice. The API shows it: to who follows a job's
-- words after its end, and of a job that failed because its answer could not be used. Of other effects it sees nothing.
CREATE POLICY effect_api ON effect FOR SELECT TO offstage_api USING (tenant_id = current_tenant() AND key LIKE 'ai:%');
GRANT SELECT (job_id, key, tenant_id, finished_at, receipt) ON effect TO offstage_api;
