//! The example product's data, loaded as `make run` loads it.

use sandbox::example::Origin;
use sandbox::{Options, Sandbox};
use sqlx::{Connection, PgConnection};

#[tokio::test]
async fn promptlockr_is_loaded_once_and_readable_by_its_reader() {
    let world = Sandbox::start(Options::test().without_migrations()).await.unwrap();
    assert!(world.load_promptlockr(200).await.unwrap());
    assert!(!world.load_promptlockr(200).await.unwrap(), "the second time there is nothing to do");
    let mut source = PgConnection::connect(&world.postgres.source_url()).await.unwrap();
    let prompts: i64 = sqlx::query_scalar("SELECT count(*) FROM prompts").fetch_one(&mut source).await.unwrap();
    assert_eq!(prompts, 200);
    assert!(sqlx::query("DELETE FROM prompts").execute(&mut source).await.is_err());
}

#[tokio::test]
async fn the_package_catalogue_is_loaded_whole() {
    let world = Sandbox::start(Options::test().without_migrations()).await.unwrap();
    world.load_promptlockr(10).await.unwrap();
    let catalogue = world.load_packages().await.unwrap().unwrap();
    assert_eq!(world.load_packages().await.unwrap(), None, "the second time there is nothing to do");
    let mut source = PgConnection::connect(&world.postgres.source_url()).await.unwrap();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM packages").fetch_one(&mut source).await.unwrap();
    assert_eq!(u64::try_from(rows).unwrap(), catalogue.rows);
    if catalogue.origin == Origin::Apt {
        // Another reader of the same catalogue: apt-cache itself, one record.
        let (package, version, architecture, depends): (String, String, String, String) = sqlx::query_as(
            "SELECT package, version, architecture, depends FROM packages WHERE depends IS NOT NULL AND size IS NOT NULL AND architecture <> 'all' \
             ORDER BY length(depends) DESC LIMIT 1",
        )
        .fetch_one(&mut source)
        .await
        .unwrap();
        let wanted = format!("{package}:{architecture}={version}");
        let output = std::process::Command::new("apt-cache").args(["show", "--no-all-versions", &wanted]).output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(shown.contains(&format!("\nDepends: {depends}\n")), "{wanted}");
    }
}
