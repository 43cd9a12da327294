-- Of which days a tenant's raw events are not all there any more: a rebuild of such a day would lose what was counted of it.
CREATE TABLE event_horizon (
    tenant_id   integer PRIMARY KEY,
    gone_before date NOT NULL           -- UTC days before this one; it only ever grows
);
ALTER TABLE event_horizon ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_horizon FORCE ROW LEVEL SECURITY;
CREATE POLICY event_horizon_engine ON event_horizon TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY event_horizon_api ON event_horizon TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON event_horizon TO offstage_engine;
