-- Whether any product lists an origin (`[web]` of its manifest). A browser's preflight carries no credentials, so nobody knows yet whose
-- it is; the answer to the request itself is opened by its own product's list alone.
CREATE FUNCTION origin_is_listed(p_origin text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT EXISTS (SELECT FROM tenant t WHERE t.manifest #> '{web,origins}' ? p_origin) $$;

-- A function's owner must be able to create in its schema, at the moment it becomes the owner.
GRANT CREATE ON SCHEMA public TO offstage_engine;
ALTER FUNCTION origin_is_listed(text) OWNER TO offstage_engine;
REVOKE CREATE ON SCHEMA public FROM offstage_engine;
REVOKE ALL ON FUNCTION origin_is_listed(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION origin_is_listed(text) TO offstage_api;
