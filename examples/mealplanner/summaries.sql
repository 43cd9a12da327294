-- mealplanner's tables, as far as its trainers' dashboard reads them, and the summaries that Offstage refreshes
-- (`[summaries]` of tenant.toml). Run as the owner of the product's database.

CREATE TABLE trainers (
    id   integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL
);
CREATE TABLE customers (
    id         integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    trainer_id integer NOT NULL REFERENCES trainers (id),
    active     boolean NOT NULL DEFAULT true
);
CREATE TABLE meal_plans (
    id           integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    trainer_id   integer NOT NULL REFERENCES trainers (id),
    customer_id  integer REFERENCES customers (id),
    created_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz
);

-- Owned by the role that refreshes: PostgreSQL lets a view's owner refresh it, and from 17 on whoever has MAINTAIN.
CREATE SCHEMA reporting;

-- One row a trainer. The unique index is what lets it be refreshed while it is read.
CREATE MATERIALIZED VIEW reporting.trainer_summary AS
    SELECT t.id AS trainer_id,
           t.name,
           (SELECT count(*) FROM customers c WHERE c.trainer_id = t.id AND c.active) AS customers,
           count(p.id) AS plans,
           count(p.completed_at) AS plans_completed,
           max(p.created_at) AS last_plan_at
    FROM trainers t LEFT JOIN meal_plans p ON p.trainer_id = t.id
    GROUP BY t.id, t.name
    WITH NO DATA;
CREATE UNIQUE INDEX trainer_summary_key ON reporting.trainer_summary (trainer_id);

-- The same by day. A day that is over is counted once more for two days, since plans are completed late.
CREATE TABLE reporting.trainer_day (
    trainer_id      integer NOT NULL,
    day             date NOT NULL,
    plans           bigint NOT NULL,
    plans_completed bigint NOT NULL,
    PRIMARY KEY (trainer_id, day)
);
CREATE FUNCTION reporting.refresh_trainer_days() RETURNS bigint
    LANGUAGE sql AS $$
        WITH counted AS (
            INSERT INTO reporting.trainer_day AS d (trainer_id, day, plans, plans_completed)
            SELECT p.trainer_id, (p.created_at AT TIME ZONE 'UTC')::date, count(*), count(p.completed_at)
            FROM meal_plans p
            WHERE p.created_at >= coalesce((SELECT max(day) - 2 FROM reporting.trainer_day), '-infinity'::date)
            GROUP BY 1, 2
            ON CONFLICT (trainer_id, day) DO UPDATE SET plans = excluded.plans, plans_completed = excluded.plans_completed
            RETURNING 1)
        SELECT count(*) FROM counted
    $$;
