//! Tasks that end together.

use std::future::Future;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

/// See the module. Dropping it stops them without waiting; tasks that hold what it is a part of have to be stopped otherwise.
pub(crate) struct Tasks(Mutex<Option<Vec<JoinHandle<()>>>>);

impl Default for Tasks {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Tasks {
    /// Begins a task; not any more once they are being ended.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = &mut *self.0.lock() {
            tasks.retain(|task| !task.is_finished());
            tasks.push(tokio::spawn(task));
        }
    }

    /// Stops all of them, waits for none, and begins no other.
    pub(crate) fn abort(&self) {
        self.0.lock().take().iter().flatten().for_each(JoinHandle::abort);
    }

    /// Stops all of them and waits until none runs. One that is running on another thread goes on until it waits for something, and
    /// what it does there must not come behind what the caller does next.
    pub(crate) async fn end(&self) {
        let tasks = self.0.lock().take().unwrap_or_default();
        tasks.iter().for_each(JoinHandle::abort);
        join_all(tasks).await;
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_that_is_running_is_waited_for_and_begins_no_other() {
        let tasks = Arc::new(Tasks::default());
        let (runs, running) = mpsc::channel();
        let (let_go, held) = mpsc::channel::<()>();
        let (done, other) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        tasks.spawn({
            let (tasks, done, other) = (tasks.clone(), done.clone(), other.clone());
            async move {
                runs.send(()).unwrap();
                held.recv().unwrap();
                tasks.spawn(async move { other.store(true, Ordering::Release) });
                done.store(true, Ordering::Release);
                pending::<()>().await;
            }
        });
        running.recv_timeout(Duration::from_secs(60)).unwrap();
        let mut end = Box::pin(tasks.end());
        assert!(end.as_mut().now_or_never().is_none(), "the task is held");
        let_go.send(()).unwrap();
        end.await;
        assert!(done.load(Ordering::Acquire));
        tokio::task::yield_now().await;
        assert!(!other.load(Ordering::Acquire));
        assert!(tasks.0.lock().is_none());
    }

    #[tokio::test]
    async fn dropping_stops_them() {
        struct Told(Option<tokio::sync::oneshot::Sender<()>>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.take().unwrap().send(());
            }
        }
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let told = Told(Some(sender));
        let tasks = Tasks::default();
        tasks.spawn(async move {
            let _told = told;
            pending().await
        });
        drop(tasks);
        tokio::time::timeout(Duration::from_secs(60), receiver).await.unwrap().unwrap();
    }
}
