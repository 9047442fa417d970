//! The threads that hash: few, their own, and behind everything else in the scheduler's eyes.
//!
//! A hash takes its core for some 20 ms. On the request threads' own terms it would make each request
//! that comes meanwhile wait for a turn; a thread with a low priority gives the core up at once. Not
//! here: how many may wait (`password`).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// How far behind: a third of the share of a request thread where both want the same core, so that
/// logins go on under full load, also that of others on the machine.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads; they end when this is dropped.
#[derive(Debug)]
pub struct Pool(Mutex<Sender<Job>>);

/// How many hashes to compute at a time on a machine with that many cores.
pub fn threads_for(cores: usize) -> usize {
    cores.max(1)
}

impl Pool {
    /// # Errors
    /// The system gives no thread.
    pub fn start(threads: usize) -> io::Result<Pool> {
        let (sender, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..threads {
            let jobs = Arc::clone(&jobs);
            thread::Builder::new().name("hash".to_owned()).spawn(move || work(&jobs))?;
        }
        Ok(Pool(Mutex::new(sender)))
    }

    /// Runs `job` when a thread is free. One that panics is dropped, and its thread goes on.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The threads are there for as long as this is.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(Box::new(job));
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    step_back();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

#[cfg(target_os = "linux")]
fn step_back() {
    // On Linux a priority is a thread's own. Refused by some sandboxes, and only a matter of speed then.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
}

#[cfg(not(target_os = "linux"))]
fn step_back() {}
