-- promptlockr, a library of AI prompts: the product's own database, which Offstage only reads.
--
-- Run by the database's owner in an empty UTF-8 database of Postgres 15 or later, in one transaction
-- (`psql --single-transaction --file schema.sql`). The read-only login role offstage_source must exist.

CREATE TYPE plan_tier AS ENUM ('free', 'pro', 'team', 'enterprise');
CREATE TYPE visibility AS ENUM ('private', 'unlisted', 'public');
CREATE TYPE prompt_category AS ENUM ('writing', 'coding', 'marketing', 'research', 'education', 'Q&A', 'role-play', 'image, video');

CREATE DOMAIN handle AS text CHECK (VALUE ~ '^[a-z0-9_]{1,39}$');

CREATE TABLE users (
    id              uuid PRIMARY KEY,
    -- The name in addresses, and what the product's backend sends as the acting user.
    name            handle NOT NULL UNIQUE,
    display_name    varchar(255) NOT NULL,
    email           text NOT NULL UNIQUE,
    bio             text,
    country         char(2),
    tier            plan_tier NOT NULL DEFAULT 'free',
    is_moderator    boolean NOT NULL DEFAULT false,
    preferences     jsonb NOT NULL DEFAULT '{}',
    avatar          bytea,
    -- US dollars of prepaid use.
    credit          numeric(12, 2) NOT NULL DEFAULT 0,
    reputation      double precision NOT NULL DEFAULT 0,
    digest_every    interval,
    digest_at       time,
    last_address    inet,
    joined_on       date NOT NULL,
    -- Infinity: banned.
    suspended_until timestamptz,
    last_seen_at    timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE prompts (
    -- UUIDv7: in the order of creation.
    id                  uuid PRIMARY KEY,
    owner_id            uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    title               varchar(255) NOT NULL,
    -- NULL: never written. Empty: cleared by its owner.
    description         text,
    content             text NOT NULL,
    category            prompt_category NOT NULL,
    visibility          visibility NOT NULL DEFAULT 'private',
    tags                text[] NOT NULL DEFAULT '{}' CHECK (array_ndims(tags) = 1),
    -- The placeholders in content: name, type, default.
    variables           jsonb NOT NULL DEFAULT '[]',
    -- The model's settings exactly as the client sent them.
    settings            json,
    model               text,
    is_template         boolean NOT NULL DEFAULT false,
    -- NULL: not yet reviewed.
    is_approved         boolean,
    use_count           bigint NOT NULL DEFAULT 0,
    -- US dollars a run; NaN where the model has no list price.
    estimated_cost      numeric(12, 6),
    -- 0 to 100 where an evaluator kept to it; what came in is kept digit by digit.
    quality_score       numeric,
    -- Share of runs that were rated good; NaN before the first rating.
    success_rate        double precision,
    recent_scores       real[],
    average_response    interval,
    -- The id in the library that the prompt was imported from, and that library's local time.
    external_id         bigint,
    imported_at         timestamp,
    -- When the text that the prompt quotes was published: a speech of Cicero's is BC.
    source_published_on date,
    -- Infinity: for good.
    available_until     timestamptz,
    content_sha256      bytea NOT NULL,
    attachment          bytea,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now()
);
-- A user's prompts from the oldest on: the owner's list and the export read this.
CREATE INDEX prompts_by_owner ON prompts (owner_id, created_at, id);
CREATE INDEX prompts_by_time ON prompts (created_at, id);

CREATE TABLE collections (
    id          uuid PRIMARY KEY,
    owner_id    uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    name        varchar(255) NOT NULL,
    description text,
    visibility  visibility NOT NULL DEFAULT 'private',
    color       integer,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX collections_by_owner ON collections (owner_id, created_at, id);

CREATE TABLE collection_prompts (
    collection_id uuid NOT NULL REFERENCES collections ON DELETE CASCADE,
    position      smallint NOT NULL,
    prompt_id     uuid NOT NULL REFERENCES prompts ON DELETE CASCADE,
    note          text,
    added_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (collection_id, position),
    UNIQUE (prompt_id, collection_id)
);

CREATE TABLE likes (
    prompt_id  uuid NOT NULL REFERENCES prompts ON DELETE CASCADE,
    user_id    uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (prompt_id, user_id)
);
CREATE INDEX likes_by_user ON likes (user_id);

CREATE TABLE follows (
    follower_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    followed_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (follower_id, followed_id),
    CHECK (follower_id <> followed_id)
);
CREATE INDEX follows_by_followed ON follows (followed_id);

CREATE TABLE comments (
    id         uuid PRIMARY KEY,
    prompt_id  uuid NOT NULL REFERENCES prompts ON DELETE CASCADE,
    author_id  uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    body       text NOT NULL,
    edited_at  timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX comments_by_prompt ON comments (prompt_id, created_at);
CREATE INDEX comments_by_author ON comments (author_id);

-- The role that exports read under may read every table, those to come too, and write nothing. By default every role of the
-- cluster may connect to a database, make temporary tables in it and create large objects: that goes as well, the last
-- where this script has the right to take it away (it is a superuser's).
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO offstage_source', current_database());
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC;
    END IF;
END
$$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO offstage_source;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO offstage_source;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO offstage_source;
