//! A program that runs on a machine: its own runtime and clock, driven from outside, so that it can stand still.
//!
//! Comes in: the program, and the time. Goes out: that it ended by itself, if it did. Always holds: a frozen program
//! does nothing at all, whatever happens around it; when it goes on, its clock has gone on too, all its timers that
//! came due meanwhile are overdue at once, and what it was sent waits for it. A dropped one is killed.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep_until};

/// How a program ends.
pub type Ended = Result<(), Box<dyn Error + Send + Sync>>;

/// A program.
#[derive(Debug)]
pub struct Process {
    runtime: Runtime,
    end: JoinHandle<Ended>,
    origin: Instant,
    began: u64,
    ran_until: u64,
    frozen: bool,
}

impl Process {
    /// Starts one.
    ///
    /// # Errors
    /// If it gets no runtime.
    pub fn start(now: u64, program: impl Future<Output = Ended> + Send + 'static) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let origin = runtime.block_on(async { Instant::now() });
        let end = runtime.spawn(program);
        Ok(Self { runtime, end, origin, began: now, ran_until: now, frozen: false })
    }

    /// Lets it run up to `now`.
    ///
    /// # Errors
    /// How it ended: none is to end by itself.
    pub fn run(&mut self, now: u64) -> Result<(), String> {
        if self.frozen || now <= self.ran_until {
            return Ok(());
        }
        self.ran_until = now;
        let until = self.origin + Duration::from_millis(now - self.began);
        // A timer is made where the runtime is.
        self.runtime.block_on(async { sleep_until(until).await });
        if !self.end.is_finished() {
            return Ok(());
        }
        match self.runtime.block_on(&mut self.end) {
            Ok(Ok(())) => Err("it ended".to_owned()),
            Ok(Err(error)) => Err(format!("it ended: {error}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Lets it stand still.
    pub fn freeze(&mut self) {
        self.frozen = true;
    }

    /// Lets it go on, late.
    pub fn thaw(&mut self, now: u64) {
        let stood = Duration::from_millis(now.saturating_sub(self.ran_until));
        self.runtime.block_on(advance(stood));
        (self.ran_until, self.frozen) = (now, false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_frozen_program_does_nothing_and_goes_on_with_all_its_timers_overdue() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&log);
        let program = async move {
            let began = Instant::now();
            for period in [20, 20, 20] {
                tokio::time::sleep(Duration::from_millis(period)).await;
                told.lock().unwrap().push(began.elapsed().as_millis());
            }
            std::future::pending().await
        };
        let mut process = Process::start(100, program).unwrap();
        process.run(130).unwrap();
        process.freeze();
        process.run(1_000).unwrap();
        assert_eq!(*log.lock().unwrap(), [20]);
        process.thaw(1_000);
        process.run(1_010).unwrap();
        assert_eq!(*log.lock().unwrap(), [20, 900]);
        process.run(1_050).unwrap();
        assert_eq!(*log.lock().unwrap(), [20, 900, 920]);
    }
}
