//! The words of an answer on their way to whoever follows the job.
//!
//! What must stay true: nothing in here holds up the call or fails the job; what is not told here is told at the job's end, from the ledger.

use std::time::Duration;

use shared::{
    job::JobId,
    queue::{
        Commands, Redis,
        keys::Keys,
        words::{self, Words},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::clients::ai::Listener;

/// Pieces of an answer that may wait for Redis; what comes while it is full is told at the end.
const WAITING: usize = 1_024;

/// How long words are gathered before they are told, at the least: what a person does not see.
const GATHERED_FOR: Duration = Duration::from_millis(30);

/// Of an answer that takes long, this part of its time: so the entries of an hour stay some hundred.
const PART: u32 = 50;

/// The way to followers.
#[derive(Debug, Clone)]
pub struct Followers {
    commands: Commands,
    keys: Keys,
}

impl Followers {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(redis: &Redis) -> Self {
        Self { commands: redis.commands(), keys: redis.keys().clone() }
    }

    /// Forgets what was said in jobs that are erased. Where Redis is away it goes by itself, [`words::KEPT_FOR`] after the last word.
    pub async fn forget(&self, jobs: &[JobId]) {
        if let Err(error) = words::forget(&mut self.commands.clone(), &self.keys, jobs).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what models said in erased jobs could not be removed from Redis; it goes by itself within ten minutes"
            );
        }
    }

    /// Begins a stream of words of a job. It ends when what is returned is dropped and all was told.
    pub(super) fn begin(&self, job: JobId, stream: String) -> Speaking {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(tell(self.clone(), job, stream, receiver));
        Speaking { sender, is_whole: true }
    }
}

/// An answer that is being told.
#[derive(Debug)]
pub(super) struct Speaking {
    sender: mpsc::Sender<String>,
    /// Whether all so far was passed on: behind a gap nothing is any use.
    is_whole: bool,
}

impl Listener for Speaking {
    fn heard(&mut self, words: &str) {
        self.is_whole = self.is_whole && self.sender.try_send(words.to_owned()).is_ok();
    }
}

/// Tells words until there are no more, or Redis is away.
async fn tell(followers: Followers, job: JobId, stream: String, mut receiver: mpsc::Receiver<String>) {
    let Followers { mut commands, keys } = followers;
    let began = Instant::now();
    // The beginning is told by itself, so that whoever followed another stream knows at once.
    let mut words = Words { stream, offset: 0, text: String::new() };
    loop {
        if let Err(error) = words::add(&mut commands, &keys, job, &words).await {
            metrics::counter!("offstage_ai_words_lost_total").increment(1);
            tracing::debug!(error = &error as &dyn std::error::Error, %job, "words can't be told now; they are at the end");
            // A gap follows: the rest is told at the end.
            return;
        }
        let told = Instant::now();
        words = Words { offset: words.offset + words.text.len(), text: String::new(), stream: words.stream };
        let Some(first) = receiver.recv().await else { return };
        words.text.push_str(&first);
        // The first words go at once.
        let until = if words.offset == 0 { told } else { told + GATHERED_FOR + began.elapsed() / PART };
        loop {
            tokio::select! {
                biased;
                more = receiver.recv() => match more {
                    Some(more) => words.text.push_str(&more),
                    None => break,
                },
                () = sleep_until(until) => break,
            }
        }
    }
}
