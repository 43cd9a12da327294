//! The S3 server as AWS' own client meets it, well and badly behaved.

use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use http_body_util::{BodyExt, Empty};
use sandbox::services::s3::BUCKET;
use sandbox::{Fault, Options, Rule, Sandbox};

/// The least that S3 takes for a part other than the last.
const PART: usize = 5 * 1024 * 1024;

async fn world() -> (Sandbox, Client) {
    let world = Sandbox::start(Options::test().without_migrations()).await.unwrap();
    let client = client(&world, 1);
    (world, client)
}

fn client(world: &Sandbox, attempts: u32) -> Client {
    let (key_id, secret) = world.s3.credentials();
    let configuration = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(world.s3.endpoint())
        .credentials_provider(Credentials::new(key_id, secret, None, None, "test"))
        .force_path_style(true)
        .retry_config(RetryConfig::standard().with_max_attempts(attempts).with_initial_backoff(Duration::from_millis(10)))
        .timeout_config(TimeoutConfig::builder().operation_timeout(Duration::from_secs(30)).build())
        .build();
    Client::from_conf(configuration)
}

async fn put(client: &Client, key: &str, bytes: Vec<u8>) -> Result<(), String> {
    let result = client.put_object().bucket(BUCKET).key(key).body(ByteStream::from(bytes)).send().await;
    result.map(drop).map_err(|error| match &error {
        SdkError::ServiceError(service) => {
            format!("{} {}", service.raw().status(), service.err().code().unwrap_or_default())
        }
        other => format!("{other:?}"),
    })
}

/// `GET` without any credentials but those in the address.
async fn get(url: &str) -> (u16, Vec<u8>) {
    let url: hyper::Uri = url.parse().unwrap();
    let stream = tokio::net::TcpStream::connect(url.authority().unwrap().as_str()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(url.path_and_query().unwrap().as_str())
        .header("host", url.authority().unwrap().as_str())
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    (response.status().as_u16(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn objects_go_in_and_come_out_by_signed_links_only() {
    let (world, client) = world().await;
    put(&client, "exports/ünï 1.csv", b"a,b\r\n".to_vec()).await.unwrap();
    assert_eq!(world.s3.objects().unwrap().first().unwrap().size, 5);
    assert_eq!(world.s3.object("exports/ünï 1.csv").unwrap(), b"a,b\r\n");

    let link = client
        .get_object()
        .bucket(BUCKET)
        .key("exports/ünï 1.csv")
        .response_content_disposition("attachment; filename=\"a.csv\"")
        .presigned(PresigningConfig::expires_in(Duration::from_secs(60)).unwrap())
        .await
        .unwrap();
    assert_eq!(get(link.uri()).await, (200, b"a,b\r\n".to_vec()));
    let forged = link.uri().replace("X-Amz-Expires=60", "X-Amz-Expires=61");
    assert_eq!(get(&forged).await.0, 403);
    let (unsigned, _) = link.uri().split_once('?').unwrap();
    assert_eq!(get(unsigned).await.0, 403);
}

#[tokio::test]
async fn an_abandoned_upload_is_seen_until_it_is_aborted() {
    let (world, client) = world().await;
    let begin = async |key: &str| {
        let begun = client.create_multipart_upload().bucket(BUCKET).key(key).send().await.unwrap();
        begun.upload_id.unwrap()
    };
    let part = async |key: &str, id: &str, number: i32, size: usize| {
        let body = ByteStream::from(vec![b'x'; size]);
        let sent = client.upload_part().bucket(BUCKET).key(key).upload_id(id).part_number(number).body(body).send().await.unwrap();
        CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build()
    };
    let (whole, left) = (begin("whole.csv").await, begin("left.csv").await);
    let parts = vec![part("whole.csv", &whole, 1, PART).await, part("whole.csv", &whole, 2, 7).await];
    part("left.csv", &left, 1, 9).await;
    client
        .complete_multipart_upload()
        .bucket(BUCKET)
        .key("whole.csv")
        .upload_id(&whole)
        .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
        .send()
        .await
        .unwrap();

    let [upload] = &world.s3.unfinished_uploads().unwrap()[..] else { panic!() };
    assert_eq!((upload.key.as_str(), &upload.upload_id, upload.parts, upload.bytes), ("left.csv", &left, 1, 9));
    let listed = client.list_multipart_uploads().bucket(BUCKET).prefix("le").send().await.unwrap();
    assert_eq!(listed.uploads().iter().map(|upload| upload.upload_id().unwrap()).collect::<Vec<_>>(), [left.as_str()]);
    assert!(listed.uploads()[0].initiated().is_some());
    assert_eq!(client.list_multipart_uploads().bucket(BUCKET).prefix("x").send().await.unwrap().uploads().len(), 0);

    client.abort_multipart_upload().bucket(BUCKET).key("left.csv").upload_id(&left).send().await.unwrap();
    assert_eq!(world.s3.unfinished_uploads().unwrap(), []);
    assert_eq!(world.s3.objects().unwrap().iter().map(|object| object.size).collect::<Vec<_>>(), [PART as u64 + 7]);
}

#[tokio::test]
async fn refusals_come_as_often_as_told_and_are_recorded() {
    let (world, client) = world().await;
    world.s3.faults().add(Rule::from(Fault::Status(503)).on("PutObject").path_contains("exports/").skip(1).times(2));
    let results = [
        put(&client, "exports/1", vec![1]).await,
        put(&client, "exports/2", vec![1]).await,
        put(&client, "other/3", vec![1]).await,
        put(&client, "exports/4", vec![1]).await,
        put(&client, "exports/5", vec![1]).await,
    ];
    let slow_down = Err("503 SlowDown".to_owned());
    assert_eq!(results, [Ok(()), slow_down.clone(), Ok(()), slow_down, Ok(())]);
    let statuses: Vec<_> = world.s3.faults().requests().iter().map(|record| record.status).collect();
    assert_eq!(statuses, [Some(200), Some(503), Some(200), Some(503), Some(200)]);

    world.s3.faults().add(Fault::Status(403));
    assert_eq!(put(&client, "exports/6", vec![1]).await, Err("403 AccessDenied".to_owned()));
    world.s3.faults().clear();
    // A client that retries gets over it.
    world.s3.faults().add(Rule::from(Fault::Status(500)).times(2));
    put(&self::client(&world, 3), "exports/7", vec![1]).await.unwrap();
}

#[tokio::test]
async fn a_hang_lasts_until_it_is_cleared() {
    let (world, client) = world().await;
    world.s3.faults().add(Fault::Hang);
    let hanging = tokio::spawn(async move { put(&client, "one", vec![1]).await });
    world.s3.faults().wait_for(Duration::from_secs(10), |requests| requests.len() == 1).await.unwrap();
    assert!(!hanging.is_finished());
    world.s3.faults().clear();
    assert!(hanging.await.unwrap().is_err());
    assert_eq!(world.s3.objects().unwrap(), []);
}

#[tokio::test]
async fn a_cut_upload_stores_nothing_and_a_lost_answer_stores_all() {
    let (world, client) = world().await;
    for after_bytes in [0, 100_000] {
        world.s3.faults().add(Rule::from(Fault::Drop { after_bytes }).times(1));
        assert!(put(&client, "cut", vec![1; 1_000_000]).await.is_err());
        assert_eq!(world.s3.objects().unwrap(), []);
    }
    world.s3.faults().add(Rule::from(Fault::LoseAnswer).times(1));
    assert!(put(&client, "lost", vec![1; 1_000_000]).await.is_err());
    assert_eq!(world.s3.object("lost").unwrap().len(), 1_000_000);

    // Downwards: the client is told the length and gets less.
    world.s3.faults().add(Rule::from(Fault::Drop { after_bytes: 100_000 }).on("GetObject").times(1));
    let got = client.get_object().bucket(BUCKET).key("lost").send().await.unwrap();
    assert!(got.body.collect().await.is_err());
    let got = client.get_object().bucket(BUCKET).key("lost").send().await.unwrap();
    assert_eq!(got.body.collect().await.unwrap().into_bytes().len(), 1_000_000);
}

#[tokio::test]
async fn a_slow_store_takes_the_time_it_was_told() {
    let (world, client) = world().await;
    world.s3.faults().add(Rule::from(Fault::Slow { bytes_per_second: 100_000 }).times(2));
    for direction in ["up", "down"] {
        let start = Instant::now();
        if direction == "up" {
            put(&client, "slow", vec![1; 50_000]).await.unwrap();
        } else {
            let got = client.get_object().bucket(BUCKET).key("slow").send().await.unwrap();
            assert_eq!(got.body.collect().await.unwrap().into_bytes().len(), 50_000);
        }
        // The fault's own promise, a lower bound: no machine is too slow for it.
        assert!(start.elapsed() >= Duration::from_millis(440), "{direction}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn the_store_stops_and_comes_back_with_what_it_held() {
    let (world, client) = world().await;
    put(&client, "kept", vec![1]).await.unwrap();
    world.s3.kill9();
    assert!(put(&client, "refused", vec![1]).await.is_err());
    world.s3.start().await.unwrap();
    let got = client.get_object().bucket(BUCKET).key("kept").send().await.unwrap();
    assert_eq!(got.body.collect().await.unwrap().into_bytes().to_vec(), [1]);

    world.s3.pause();
    let waiting = tokio::spawn(async move { put(&client, "late", vec![1]).await });
    world
        .s3
        .faults()
        .wait_for(Duration::from_secs(10), |requests| requests.iter().any(|record| record.request.path.ends_with("/late")))
        .await
        .unwrap();
    assert!(world.s3.object("late").is_err());
    world.s3.resume();
    waiting.await.unwrap().unwrap();
}
