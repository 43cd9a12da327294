use serde_json::json;

use super::*;
use crate::tenant::{Audience, Period};

const PROMPTLOCKR: &str = r#"
[tenant]
name = "promptlockr"

[sources.main]
url_env = "OFFSTAGE_SOURCE_PROMPTLOCKR_URL"
statement_timeout_seconds = 600

[datasets.prompts]
source = "main"
description = "All prompts of one owner"
sql = """
SELECT id, title
FROM prompt
WHERE owner_id = :owner AND created_at >= :since AND tag = ANY(:tags) AND day >= :day
ORDER BY id
"""
[datasets.prompts.parameters]
owner = { type = "text", from = "owner" }
since = { type = "timestamptz", default = 1970-01-01T00:00:00Z }
day = { type = "date", default = "2020-02-29" }
tags = { type = "text[]", default = ["a", "b"] }
"#;

fn problems(text: &str) -> Vec<(Option<usize>, String, String)> {
    let error = Manifest::from_toml(text).unwrap_err();
    error.problems.into_iter().map(|problem| (problem.line, problem.path, problem.detail)).collect()
}

fn only_problem(text: &str) -> (usize, String, String) {
    let mut problems = problems(text);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    let (line, path, detail) = problems.remove(0);
    (line.unwrap(), path, detail)
}

/// The example with one part of it replaced.
fn with(part: &str, other: &str) -> String {
    assert!(PROMPTLOCKR.contains(part), "{part}");
    PROMPTLOCKR.replacen(part, other, 1)
}

#[test]
fn a_whole_manifest() {
    let manifest = Manifest::from_toml(PROMPTLOCKR).unwrap();
    assert_eq!(manifest.name, "promptlockr");
    let source = &manifest.sources["main"];
    assert_eq!((source.url_env.as_str(), source.statement_timeout.as_secs()), ("OFFSTAGE_SOURCE_PROMPTLOCKR_URL", 600));
    let dataset = &manifest.datasets["prompts"];
    assert!(dataset.sql().contains("owner_id = ($1::text) AND created_at >= (($2::text)::timestamptz)"), "{}", dataset.sql());
    let values = dataset.bind(&serde_json::Map::new(), Some("ada")).unwrap();
    let values: Vec<_> = values.into_iter().flatten().collect();
    assert_eq!(values, ["ada", "1970-01-01T00:00:00.000000Z", "{\"a\",\"b\"}", "2020-02-29"]);
}

#[test]
fn what_is_stored_reads_back_the_same() {
    let manifest = Manifest::from_toml(PROMPTLOCKR).unwrap();
    let back = Manifest::from_stored(manifest.to_stored()).unwrap();
    assert_eq!(back.digest(), manifest.digest());
    assert_eq!(back.datasets, manifest.datasets);
    assert_eq!(back.sources, manifest.sources);
    // Comments and the tables' order are not what it says.
    let moved = with("[sources.main]\nurl_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"\nstatement_timeout_seconds = 600\n", "# moved\n")
        + "[sources.main]\nstatement_timeout_seconds = 600\nurl_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"\n";
    assert_eq!(Manifest::from_toml(&moved).unwrap().digest(), manifest.digest());
    assert_ne!(Manifest::from_toml(&with("= 600", "= 601")).unwrap().digest(), manifest.digest());
}

#[test]
fn a_newer_programs_manifest_is_read_as_far_as_known() {
    let mut stored = Manifest::from_toml(PROMPTLOCKR).unwrap().to_stored();
    stored["plans"] = json!({"free": {}});
    stored["datasets"]["prompts"]["cache"] = json!(true);
    assert!(Manifest::from_stored(stored.clone()).is_ok());
    stored["datasets"]["prompts"]["source"] = json!("gone");
    let problems = Manifest::from_stored(stored).unwrap_err().problems;
    assert_eq!((problems[0].line, problems[0].path.as_str()), (None, "datasets.prompts.source"));
}

#[test]
fn nonsense_is_refused_with_its_line() {
    for (part, other, line, path, detail) in [
        ("name = \"promptlockr\"", "name = \"Prompt Lockr\"", 3, "tenant.name", "must begin with a lower-case letter"),
        ("[tenant]", "[tenant", 2, "", "unclosed table"),
        ("source = \"main\"", "source = \"other\"", 10, "datasets.prompts.source", "there is no source `other`; there are: main"),
        (
            "url_env = \"OFFSTAGE_SOURCE_PROMPTLOCKR_URL\"",
            "url_env = \"OFFSTAGE_DATABASE_URL\"",
            6,
            "sources.main.url_env",
            "must be OFFSTAGE_SOURCE_",
        ),
        ("= 600", "= 0", 7, "sources.main.statement_timeout_seconds", "is 0"),
        ("statement_timeout_seconds", "statement_timeout", 7, "sources.main.statement_timeout", "is not part of a manifest"),
        ("= 600", "= \"600\"", 7, "", "invalid type: string \"600\""),
        ("description", "descripton", 11, "datasets.prompts.descripton", "is not part of a manifest"),
        (":since", ":sinse", 15, "datasets.prompts.sql", "`:sinse` is not declared"),
        ("ORDER BY id", "; DELETE FROM prompt", 16, "datasets.prompts.sql", "one statement"),
        ("type = \"date\"", "type = \"day\"", 21, "", "unknown variant `day`"),
        ("1970-01-01T00:00:00Z", "1970-01-01", 20, "datasets.prompts.parameters.since.default", "must be a moment"),
        ("from = \"owner\"", "from = \"caller\"", 19, "", "unknown variant `caller`"),
        ("from = \"owner\"", "from = \"owner\", default = \"x\"", 19, "datasets.prompts.parameters.owner.default", "has no effect"),
        ("type = \"text\", from", "type = \"date\", from", 19, "datasets.prompts.parameters.owner.from", "an owner can be"),
        (
            "tags = { type = \"text[]\", default = [\"a\", \"b\"] }",
            "tags = { type = \"text[]\", default = [1] }",
            22,
            "datasets.prompts.parameters.tags.default",
            "must be a list of strings",
        ),
        (
            "[datasets.prompts]\n",
            "[datasets.\"2\"]\nsource = \"main\"\nsql = \"SELECT 1\"\n[datasets.prompts]\n",
            9,
            "datasets.2",
            "must begin",
        ),
    ] {
        let (found_line, found_path, found_detail) = only_problem(&with(part, other));
        assert_eq!((found_line, found_path.as_str()), (line, path), "{other}: {found_detail}");
        assert!(found_detail.contains(detail), "{other}: {found_detail}");
    }
}

#[test]
fn retention_is_checked_like_everything_else() {
    let with_section = |section: &str| format!("[tenant]\nname = \"a\"\n[retention]\n{section}");
    let manifest = Manifest::from_toml(&with_section("keep_days = 30\n[retention.kinds.\"export.create\"]\nkeep_count = 100\n")).unwrap();
    let installation = Retention::days(90, 180);
    let back = Manifest::from_stored(manifest.to_stored()).unwrap();
    for manifest in [&manifest, &back] {
        let kept = manifest.retention("export.create", installation);
        assert_eq!((kept.succeeded.days, kept.succeeded.count, kept.unsuccessful.days), (30, Some(100), 180));
    }
    assert_eq!(Manifest::default().retention("export.create", installation), installation);
    for (section, line, path, detail) in [
        ("keep_days = 0", 4, "retention.keep_days", "is 0; 1 to 3650"),
        ("keep_day = 3", 4, "retention.keep_day", "is not part of a manifest"),
        ("keep_days = \"3\"", 4, "", "invalid type"),
        ("[retention.kinds.\"email.sent\"]\nkeep_days = 3", 4, "retention.kinds.email.sent", "there is no kind `email.sent`"),
        ("[retention.kinds.\"export.create\"]\nkeep_count = 1000001", 5, "retention.kinds.export.create.keep_count", "1 to 1000000"),
        ("[retention.kinds.\"export.create\"]\nkeep = 1", 5, "retention.kinds.export.create.keep", "is not part of a manifest"),
    ] {
        let (found_line, found_path, found_detail) = only_problem(&with_section(section));
        assert_eq!((found_line, found_path.as_str()), (line, path), "{section}: {found_detail}");
        assert!(found_detail.contains(detail), "{section}: {found_detail}");
    }
    // A newer program's kind does not make a stored manifest unusable.
    let mut stored = manifest.to_stored();
    stored["retention"]["kinds"]["report.create"] = json!({"keep_days": 1});
    assert!(Manifest::from_stored(stored).is_ok());
}

#[test]
fn all_problems_come_at_once() {
    let text = with("AND tag = ANY(:tags)", "AND :x = :y")
        .replace("name = \"promptlockr\"", "name = \"\"\nplan = \"free\"")
        .replace("[sources.main]", "[sources.Main]");
    let error = Manifest::from_toml(&text).unwrap_err();
    let places: Vec<_> = error.problems.iter().map(|problem| (problem.line.unwrap(), problem.path.as_str())).collect();
    assert_eq!(
        places,
        [
            (3, "tenant.name"),
            (4, "tenant.plan"),
            (6, "sources.Main"),
            (11, "datasets.prompts.source"),
            (16, "datasets.prompts.sql"),
            (16, "datasets.prompts.sql"),
        ]
    );
    assert!(error.to_string().contains("\n  line 4: tenant.plan: is not part of a manifest"), "{error}");
}

#[test]
fn an_unused_parameter_is_a_mistake() {
    let (line, path, _) = only_problem(&with(" AND tag = ANY(:tags)", ""));
    assert_eq!((line, path.as_str()), (22, "datasets.prompts.parameters.tags"));
}

#[test]
fn a_url_in_the_manifest_is_refused_and_not_repeated() {
    let error = Manifest::from_toml(&with("OFFSTAGE_SOURCE_PROMPTLOCKR_URL", "postgres://reader:hunter2@db/x")).unwrap_err().to_string();
    assert!(error.contains("line 6") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_tenant_alone_is_a_manifest_and_nothing_is_not() {
    assert!(Manifest::from_toml("[tenant]\nname = \"a\"\n").is_ok());
    assert!(problems("")[0].2.contains("missing field `tenant`"));
    assert!(problems(&"#".repeat(LONGEST + 1))[0].2.contains("1048577 bytes"));
}

#[test]
fn a_dataset_is_for_users_when_bound_to_its_owner_or_declared_so() {
    let audience = |text: &str| Manifest::from_toml(text).unwrap().datasets["prompts"].audience;
    assert_eq!(audience(PROMPTLOCKR), Audience::Users);
    let unbound = with(", from = \"owner\"", ", default = \"\"");
    assert_eq!(audience(&unbound), Audience::Backend);
    let opened = unbound.replace("description = ", "audience = \"users\"\ndescription = ");
    assert_eq!(audience(&opened), Audience::Users);
    let stored = Manifest::from_toml(&opened).unwrap().to_stored();
    assert_eq!(Manifest::from_stored(stored).unwrap().datasets["prompts"].audience, Audience::Users);
    let (line, path, detail) = only_problem(&with("description = ", "audience = \"backend\"\ndescription = "));
    assert_eq!((line, path.as_str()), (11, "datasets.prompts.audience"), "{detail}");
}

#[test]
fn the_example_declares_its_plans() {
    let manifest = Manifest::from_toml(include_str!("../../../../examples/promptlockr/tenant.toml")).unwrap();
    let limit = |plan: &str, metric: &str, period| manifest.plans[plan].limit(metric, period);
    assert_eq!(limit("free", "ai_enhancements", Period::Month), Some(10));
    assert_eq!((limit("team", "prompts", Period::Total), limit("enterprise", "prompts", Period::Total)), (Some(5_000), None));
    assert_eq!(manifest.plans["pro"].price.as_ref().and_then(|price| price.year), Some(9_999));
    let stored = Manifest::from_stored(manifest.to_stored()).unwrap();
    assert_eq!((stored.plans, stored.datasets), (manifest.plans, manifest.datasets));
}

#[test]
fn a_plan_that_says_nonsense_is_refused_with_its_line() {
    for (line, path, said) in [
        ("limits.prompts = { month = -1 }", "", "untagged enum"),
        ("limits.prompts = { year = 1 }", "", "unknown variant"),
        ("limits.prompts = {}", "plans.free.limits.prompts", "says nothing"),
        ("limits.\"Prompts!\" = { month = 1 }", "plans.free.limits.Prompts!", "lower-case"),
        ("features = [\"API keys\"]", "plans.free.features", "lower-case"),
        ("price = { currency = \"dollars\" }", "plans.free.price.currency", "three letters"),
        ("colour = \"red\"", "plans.free.colour", "not part of a manifest"),
    ] {
        let (number, found, detail) = only_problem(&format!("[tenant]\nname = \"a\"\n[plans.free]\n{line}\n"));
        assert!(number >= 3 && found == path && detail.contains(said), "{line}: {number} {found}: {detail}");
    }
}

#[test]
fn a_keyset_names_different_columns() {
    let with_keyset = |keyset: &str| with("description = \"All prompts of one owner\"", &format!("keyset = {keyset}"));
    let manifest = Manifest::from_toml(&with_keyset("[\"created_at\", \"i\\\"d\"]")).unwrap();
    let sql = manifest.datasets["prompts"].sql_after(Some(&["timestamp with time zone".to_owned(), "bigint".to_owned()]));
    assert!(
        sql.ends_with("WHERE (\"created_at\", \"i\"\"d\") > ((($5::text)::timestamp with time zone), (($6::text)::bigint))\nORDER BY \"created_at\", \"i\"\"d\""),
        "{sql}"
    );
    for keyset in ["[\"a\", \"a\"]", "[\"\"]", "[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\"]"] {
        let (_, path, _) = only_problem(&with_keyset(keyset));
        assert_eq!(path, "datasets.prompts.keyset");
    }
}

#[test]
fn schedules_are_checked_when_applied_and_left_alone_when_loaded() {
    let section = "[schedules.nightly]\nkind = \"export.create\"\npayload = { dataset = \"all\", format = \"csv\", params = { since = 2026-01-01T00:00:00Z } }\n\
                   cron = \"30 2 * * *\"\ntime_zone = \"europe/berlin\"\noverlap = \"skip\"\n\
                   [sources.main]\nurl_env = \"OFFSTAGE_SOURCE_A\"\n[datasets.all]\nsource = \"main\"\nsql = \"SELECT 1 WHERE now() > :since\"\n\
                   [datasets.all.parameters]\nsince = { type = \"timestamptz\" }\n";
    let text = format!("[tenant]\nname = \"a\"\n{section}");
    let manifest = Manifest::from_toml(&text).unwrap();
    let nightly = &manifest.schedules["nightly"];
    assert_eq!((nightly.cron.as_deref(), &nightly.payload["params"]["since"]), (Some("30 2 * * *"), &json!("2026-01-01T00:00:00Z")));
    let mut stored = manifest.to_stored();
    assert_eq!(Manifest::from_stored(stored.clone()).unwrap().digest(), manifest.digest());
    // A newer program's words do not make a stored manifest unusable: the schedules stand in tables of their own.
    stored["schedules"]["nightly"]["overlap"] = json!("replace");
    assert!(Manifest::from_stored(stored).is_ok());
    for (part, other, line, path) in [
        ("kind = \"export.create\"", "kind = \"export.creat\"", 4, "schedules.nightly.kind"),
        ("dataset = \"all\"", "dataset = \"none\"", 5, "schedules.nightly.payload.dataset"),
        ("30 2 * * *", "30 2 * *", 6, "schedules.nightly.cron"),
        ("europe/berlin", "europe/bonn", 7, "schedules.nightly.time_zone"),
        ("overlap = \"skip\"", "overlap = \"skips\"", 8, "schedules.nightly.overlap"),
        ("overlap = ", "overlaps = ", 8, "schedules.nightly.overlaps"),
        ("[schedules.nightly]", "[schedules.Nightly]", 3, "schedules.Nightly"),
    ] {
        let (found_line, found_path, detail) = only_problem(&text.replacen(part, other, 1));
        assert_eq!((found_line, found_path.as_str()), (line, path), "{other}: {detail}");
    }
    let example = Manifest::from_toml(include_str!("../../../../examples/promptlockr/tenant.toml")).unwrap();
    assert_eq!(example.schedules.keys().collect::<Vec<_>>(), ["monthly_archive"]);
}

#[test]
fn mail_is_checked_and_stored() {
    let text = "[tenant]\nname = \"a\"\n[mail]\nserver_env = \"OFFSTAGE_SMTP_MAIN\"\nfrom = { email = \"no-reply@acme.example\", name = \"Acme\" }\n\
                dkim = { key_env = \"OFFSTAGE_DKIM_MAIN\", domain = \"acme.example\", selector = \"offstage\" }\n";
    let manifest = Manifest::from_toml(text).unwrap();
    let stored = Manifest::from_stored(manifest.to_stored()).unwrap();
    assert_eq!((&stored.mail, stored.digest()), (&manifest.mail, manifest.digest()));
    for (part, other, line, path) in [
        ("OFFSTAGE_SMTP_MAIN", "OFFSTAGE_DATABASE_URL", 4, "mail.server_env"),
        ("no-reply@", "no-reply", 5, "mail.from.email"),
        ("OFFSTAGE_DKIM_MAIN", "OFFSTAGE_SMTP_MAIN", 6, "mail.dkim.key_env"),
        ("selector = \"offstage\"", "selector = \"a b\"", 6, "mail.dkim.selector"),
    ] {
        let problems = Manifest::from_toml(&text.replacen(part, other, 1)).unwrap_err().problems;
        assert!(
            problems.iter().any(|problem| problem.path == path && problem.line == Some(line)) || path == "mail.server",
            "{other}: {problems:?}"
        );
    }
}

#[test]
fn types_of_notifications_are_checked_with_their_templates() {
    let text = "[tenant]\nname = \"a\"\n[notifications.sale]\ncategory = \"offers\"\nchannels = [\"in_app\", \"email\"]\n\
                [notifications.sale.templates.default]\ntitle = \"Sale {{ data.percent }}\"\n";
    let manifest = Manifest::from_toml(text).unwrap();
    let stored = Manifest::from_stored(manifest.to_stored()).unwrap();
    assert_eq!((&stored.notifications, stored.digest()), (&manifest.notifications, manifest.digest()));
    assert_eq!(manifest.notification("sale").unwrap().category("sale"), "offers");
    assert!(manifest.notification("like").is_some() && manifest.notification("nonsense").is_none());
    for (part, other, line, path) in [
        ("{{ data.percent }}", "{{ data.percent", 7, "notifications.sale.templates.default.title"),
        ("\"offers\"", "\"Offers!\"", 4, "notifications.sale.category"),
        ("category", "colour", 4, "notifications.sale.colour"),
        ("notifications.sale.templates.default", "notifications.sale.templates.deutsch_", 6, "notifications.sale.templates.deutsch_"),
    ] {
        let (found_line, found_path, detail) = only_problem(&text.replacen(part, other, 1));
        assert_eq!((found_line, found_path.as_str()), (line, path), "{other}: {detail}");
    }
    let example = Manifest::from_toml(include_str!("../../../../examples/promptlockr/tenant.toml")).unwrap();
    assert_eq!(example.notifications.keys().collect::<Vec<_>>(), ["alert", "export_ready", "like", "moderation"]);
}
