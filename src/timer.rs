//! A timer for deadlines that almost never come.
//!
//! Arming a timer for every request costs more than most of what a request needs. This one stays armed
//! at some earlier moment, looks at the real deadline when that moment comes, and is armed again only
//! then: one timer operation a minute instead of one a request.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// See the module. One task polls it, always the same.
#[derive(Debug, Default)]
pub struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whether the task is known to be woken when `sleep` ends: it need not be told every time.
    registered: bool,
}

impl LazyTimer {
    /// Whether `deadline` has passed; if not, the task will be woken in time to ask again.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        match &mut self.sleep {
            Some(sleep) if sleep.deadline() > deadline => {
                sleep.as_mut().reset(deadline);
                self.registered = false;
            }
            Some(_) => {}
            None => self.sleep = Some(Box::pin(sleep_until(deadline))),
        }
        let sleep = self.sleep.as_mut().expect("armed just now");
        if self.registered && !sleep.is_elapsed() {
            return false;
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                self.registered = false;
                return true;
            }
            sleep.as_mut().reset(deadline);
        }
        self.registered = true;
        false
    }

    /// Sees to it that the task is woken within `limit` or some earlier one, without looking at the clock
    /// where that is the case already.
    pub fn keep_armed(&mut self, cx: &mut Context<'_>, limit: Duration) {
        if !self.registered || self.sleep.as_ref().is_none_or(|sleep| sleep.is_elapsed()) {
            self.poll_expired(cx, Instant::now() + limit);
        }
    }

    /// Whether `limit` has passed since what `since` names; if not, the task will be woken in time to ask
    /// again. While it names nothing, no time passes; whoever makes it name something wakes the task.
    pub fn poll_over(
        &mut self,
        cx: &mut Context<'_>,
        limit: Duration,
        since: impl Fn() -> Option<Instant>,
    ) -> bool {
        // What is waited for may have moved on by the time that the timer fires.
        while let Some(deadline) = since().map(|since| since + limit) {
            if !self.poll_expired(cx, deadline) {
                return false;
            }
            if since().is_some_and(|since| since + limit <= Instant::now()) {
                return true;
            }
        }
        // Look again in a while: nobody is bound to wake this task for the deadline's sake.
        self.poll_expired(cx, Instant::now() + limit);
        false
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_kept_whatever_it_was_armed_for_before() {
        let mut timer = LazyTimer::default();
        let begin = Instant::now();
        for (seconds, work, finishes) in
            [(60, 1, true), (60, 61, false), (5, 6, false), (90, 89, true), (1, 2, false)]
        {
            let started = Instant::now();
            let mut done = std::pin::pin!(tokio::time::sleep(Duration::from_secs(work)));
            let finished = std::future::poll_fn(|cx| {
                if done.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                match timer.poll_over(cx, Duration::from_secs(seconds), || Some(started)) {
                    true => Poll::Ready(false),
                    false => Poll::Pending,
                }
            })
            .await;
            assert_eq!(finished, finishes);
            assert_eq!(started.elapsed().as_secs(), seconds.min(work));
        }
        assert_eq!(begin.elapsed().as_secs(), 1 + 60 + 5 + 89 + 1);
    }
}
