//! `worker drill`, as an operator holds it in staging.

use std::process::Stdio;

use acceptance::World;
use tokio::process::Command;

async fn drill(world: &World, setting: Option<&str>) -> (Option<i32>, String) {
    let program = std::env::current_exe().unwrap();
    // Beside the tests' own directory, as the sandbox finds it.
    let program = program.ancestors().map(|directory| directory.join("worker")).find(|program| program.is_file()).unwrap();
    let mut command = Command::new(program);
    command.args(["drill", "--jobs", "60", "--kills", "2", "--job-milliseconds", "2000"]).env_clear().envs(world.sandbox.env());
    if let Some(setting) = setting {
        command.env("OFFSTAGE_DRILL", setting);
    }
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), said)
}

#[tokio::test]
async fn a_drill_tells_how_recovery_goes_and_leaves_nothing() {
    let (world, worker) = World::with_worker().await;
    let (code, said) = drill(&world, None).await;
    assert_eq!(code, Some(2), "not where nobody allowed it: {said}");
    assert!(said.contains("OFFSTAGE_DRILL=on"), "{said}");

    let (code, said) = drill(&world, Some("on")).await;
    println!("{said}");
    assert_eq!(code, Some(0), "{said}");
    for line in ["jobs        60", "kills       2,", "lost        0", "unrecovered 0", "well:"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    for table in
        ["job", "job_state", "job_attempt", "job_result", "job_dispatched", "job_waiting", "job_unsuccessful", "job_tombstone", "effect"]
    {
        assert_eq!(world.number(format!("SELECT count(*) FROM {table}")).await, 0, "{table} is as before");
    }
    let left: i64 =
        world.sandbox.redis.command(redis::cmd("EXISTS").arg("{offstage:drill}:normal").arg("{offstage:drill}:high")).await.unwrap();
    assert_eq!(left, 0, "no stream is left");
    assert_eq!(worker.exits(), [], "the installation's own worker was not touched");
}
