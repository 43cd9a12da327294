-- A repeated request is answered with its first job also when it would no longer be accepted as new (its `start_by` has
-- passed, its dataset is gone from the manifest): then the API looks the key up by itself. Row-level security shows it its
-- tenant's keys.
GRANT SELECT ON idempotency_key TO offstage_api;
