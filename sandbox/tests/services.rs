//! The services as a client meets them: started, killed, paused, and started again at the same address.

use std::time::{Duration, Instant};

use sandbox::{Options, Sandbox};
use sqlx::{Connection, PgConnection};

async fn world() -> Sandbox {
    Sandbox::start(Options::test().without_migrations()).await.unwrap()
}

#[tokio::test]
async fn postgres_keeps_what_was_committed_when_it_is_killed() {
    let world = world().await;
    sqlx::query("CREATE TABLE kept (id integer)").execute(world.pool()).await.unwrap();
    sqlx::query("INSERT INTO kept VALUES (1)").execute(world.pool()).await.unwrap();
    let before = world.postgres.process().pid().unwrap();

    let exit = world.postgres.kill9().await.unwrap().unwrap();
    assert_eq!((exit.pid, exit.signal), (before, Some(9)));
    assert!(PgConnection::connect(&world.postgres.owner_url()).await.is_err());

    world.postgres.start().await.unwrap();
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(world.pool()).await.unwrap();
    assert_eq!(count, 1);
    assert_ne!(world.postgres.process().pid().unwrap(), before);
}

#[tokio::test]
async fn a_paused_postgres_answers_nobody_until_it_goes_on() {
    let world = world().await;
    let mut open = PgConnection::connect(&world.postgres.owner_url()).await.unwrap();
    world.postgres.pause().await.unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(300), sqlx::query("SELECT 1").execute(&mut open)).await;
    assert!(asked.is_err(), "an open session stands still too");
    world.postgres.resume().await.unwrap();
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(world.pool()).await.unwrap();
    assert_eq!(one, 1);
}

#[tokio::test]
async fn the_roles_are_those_of_a_real_installation() {
    let world = world().await;
    let superuser: bool =
        sqlx::query_scalar("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetch_one(world.pool()).await.unwrap();
    assert!(!superuser, "the owner must not be able to do more than at a customer's");

    let mut product = PgConnection::connect(&world.postgres.product_url()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE prompts (id integer); GRANT SELECT ON prompts TO offstage_source").execute(&mut product).await.unwrap();
    let mut source = PgConnection::connect(&world.postgres.source_url()).await.unwrap();
    sqlx::query("SELECT * FROM prompts").execute(&mut source).await.unwrap();
    for statement in ["SET default_transaction_read_only = off", "CREATE TEMPORARY TABLE mine (id integer)"] {
        let _ = sqlx::query(statement).execute(&mut source).await;
    }
    for statement in ["INSERT INTO prompts VALUES (1)", "CREATE TABLE mine (id integer)", "CREATE TEMPORARY TABLE mine (id integer)"] {
        assert!(sqlx::query(statement).execute(&mut source).await.is_err(), "{statement}");
    }
}

#[tokio::test]
async fn redis_comes_back_at_the_same_address_and_can_be_emptied() {
    let world = world().await;
    let set = |value: &str| redis_command(&["SET", "key", value]);
    let get = redis_command(&["GET", "key"]);
    world.redis.command::<()>(&set("one")).await.unwrap();
    assert_eq!(world.redis.command::<Option<String>>(&get).await.unwrap().as_deref(), Some("one"));
    world.redis.flushall().await.unwrap();
    assert_eq!(world.redis.command::<Option<String>>(&get).await.unwrap(), None);

    world.redis.kill9().await.unwrap().unwrap();
    assert!(world.redis.command::<()>(&set("two")).await.is_err());
    world.redis.start().await.unwrap();
    world.redis.command::<()>(&set("two")).await.unwrap();
}

fn redis_command(words: &[&str]) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command
}

#[tokio::test]
async fn sandboxes_stand_side_by_side_and_leave_nothing() {
    let (one, other) = tokio::join!(world(), world());
    assert_ne!(one.postgres.owner_url(), other.postgres.owner_url());
    assert_ne!(one.s3.endpoint(), other.s3.endpoint());
    let directories = [one.directory().to_owned(), other.directory().to_owned()];
    let pids = [&one, &other].map(|world| [world.postgres.process().pid().unwrap(), world.redis.process().pid().unwrap()]);
    drop(one);
    other.stop().await.unwrap();
    for pid in pids.into_iter().flatten() {
        assert!(!alive(pid), "process {pid} is left");
    }
    for directory in directories {
        assert!(!directory.exists(), "{} is left", directory.display());
    }
}

/// Whether the process runs; one that has ended and was not waited for does not.
fn alive(pid: u32) -> bool {
    let output = std::process::Command::new("/bin/sh").args(["-c", &format!("kill -0 {pid}")]).output().unwrap();
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    output.status.success() && !zombie
}

#[tokio::test]
async fn data_of_a_lasting_sandbox_is_found_again_even_after_a_crash() {
    let directory = std::env::temp_dir().join(format!("offstage-lasting-{}", std::process::id()));
    let options = || Options::lasting(&directory).without_migrations();
    let first = Sandbox::start(options()).await.unwrap();
    sqlx::query("CREATE TABLE kept AS SELECT 1 AS id").execute(first.pool()).await.unwrap();
    first.redis.command::<()>(&redis_command(&["SET", "key", "kept"])).await.unwrap();
    assert!(matches!(Sandbox::start(options()).await, Err(sandbox::Error::Busy { .. })));
    // The servers are killed and not asked; what a crash of the machine leaves besides is a pid file that lies.
    first.redis.command::<()>(&redis_command(&["BGREWRITEAOF"])).await.unwrap();
    first.redis.stop().await.unwrap();
    first.postgres.process().set_restart(false).await.unwrap();
    first.postgres.kill9().await.unwrap();
    drop(first);
    let lie = format!("{}\n{}\n", std::process::id(), directory.join("postgres").display());
    std::fs::write(directory.join("postgres/postmaster.pid"), lie).unwrap();

    let start = Instant::now();
    let second = Sandbox::start(options()).await.unwrap();
    let kept: i32 = sqlx::query_scalar("SELECT id FROM kept").fetch_one(second.pool()).await.unwrap();
    let value: String = second.redis.command(&redis_command(&["GET", "key"])).await.unwrap();
    assert_eq!((kept, value.as_str()), (1, "kept"));
    println!("started again in {:?}", start.elapsed());
    second.stop().await.unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}
