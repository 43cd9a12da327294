-- Which metrics a manifest began or ceased to declare, noted by whoever changes it, until a worker has seen to it: what was taken meanwhile
-- was not counted. Rows are only ever inserted and deleted, so that to apply a manifest waits for nobody's turn of a series.
CREATE TABLE metric_left (
    tenant_id integer NOT NULL,
    series    uuid NOT NULL,
    id        bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (tenant_id, series, id)
);
ALTER TABLE metric_left ENABLE ROW LEVEL SECURITY;
ALTER TABLE metric_left FORCE ROW LEVEL SECURITY;
CREATE POLICY metric_left_engine ON metric_left TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY metric_left_api ON metric_left TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, DELETE ON metric_left TO offstage_engine;
GRANT SELECT ON metric_left TO offstage_api;
