-- A call of a model whose worker died belongs in the usage also where nothing was reserved for its job (nobody's limit counts it). Whoever ends
-- such a job asks for it, the API among them.
GRANT EXECUTE ON FUNCTION charge_lost_calls(uuid[], timestamptz) TO offstage_api;
