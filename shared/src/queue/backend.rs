//! The apalis backend: an apalis worker pulls claimed jobs from here.
//!
//! It never answers `Err`: an error from a backend ends an apalis worker and drops what runs. So reading, claiming and
//! settling live in tasks of their own (the worker's `engine/`), and this is the bounded channel between them and apalis.
//! Closing the channel ends the worker, after what it holds has finished: that is the graceful stop.
//! `Kind` is `Ephemeral`: jobs arrive claimed, their payload still text, so one that can't be decoded fails itself only.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    task::{Task, task_id::TaskId},
    worker::context::WorkerContext,
};
use tokio::sync::mpsc;

/// Feeds one apalis worker from a channel, with `layer` around whatever its service does.
#[derive(Debug)]
pub struct ChannelBackend<Job, Layer> {
    jobs: mpsc::Receiver<Job>,
    layer: Layer,
}

impl<Job, Layer> ChannelBackend<Job, Layer> {
    /// The backend and the sender that feeds it, with room for `bound` jobs between.
    #[must_use]
    pub fn new(bound: usize, layer: Layer) -> (mpsc::Sender<Job>, Self) {
        let (sender, jobs) = mpsc::channel(bound.max(1));
        (sender, Self { jobs, layer })
    }
}

impl<Job, Layer> Backend for ChannelBackend<Job, Layer> {
    type Task = Task<Job>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, worker: &WorkerContext) -> Poll<Option<Result<Self::Task, Self::Error>>> {
        let next = self.jobs.poll_recv(cx).map(|job| job.map(|job| Ok(Task::new(job))));
        if matches!(next, Poll::Ready(None)) && !worker.is_shutting_down() {
            // An apalis worker whose backend is exhausted waits for somebody to stop it; nobody else would. It can only fail
            // where the worker was never started, and then there is nothing to stop.
            let _ = worker.stop();
        }
        next
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Self::Error>> {
        self.jobs.close();
        Poll::Ready(Ok(()))
    }
}

impl<Job, Layer: Clone> BackendConfig for ChannelBackend<Job, Layer> {
    type Args = Job;
    type Id = TaskId;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Layer;

    fn config(&self) -> &Self::Config {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Self::Layer {
        self.layer.clone()
    }
}
