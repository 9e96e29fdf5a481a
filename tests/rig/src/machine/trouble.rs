//! Trouble for a machine: cut, slow, freeze, power off. (Reset is a boot: see `boot.rs`.)

use std::time::Duration;

use super::{Machine, locked};
use crate::command::Command;
use crate::error::{Error, Result};
use crate::net::{self, Network};
use crate::qmp;

impl Machine {
    /// Cuts it off one network: packets are lost both ways, and its interface stays up.
    ///
    /// # Errors
    /// If the host's `ip` fails.
    pub fn cut_path(&self, network: Network) -> Result<()> {
        net::set_ports(self.number(), &[network], false)
    }

    /// Undoes [`Machine::cut_path`].
    ///
    /// # Errors
    /// If the host's `ip` fails.
    pub fn restore_path(&self, network: Network) -> Result<()> {
        net::set_ports(self.number(), &[network], true)
    }

    /// Cuts it off storage and management at once. It runs on, and the rig still reaches it.
    ///
    /// # Errors
    /// If the host's `ip` fails.
    pub fn cut_all(&self) -> Result<()> {
        net::set_ports(self.number(), &Network::CUTTABLE, false)
    }

    /// Undoes [`Machine::cut_all`].
    ///
    /// # Errors
    /// If the host's `ip` fails.
    pub fn restore_all(&self) -> Result<()> {
        net::set_ports(self.number(), &Network::CUTTABLE, true)
    }

    /// Slows what the machine *sends* on a network, by its own kernel's netem (hosts often lack it).
    ///
    /// # Errors
    /// If `tc` fails in the machine.
    pub fn slow_path(&self, network: Network, link: &SlowLink) -> Result<()> {
        self.sh("modprobe sch_netem")?;
        let words = ["qdisc", "replace", "dev", network.interface(), "root", "netem"];
        self.run(&Command::new("tc").args(words).args(link.words())).map(drop)
    }

    /// Undoes [`Machine::slow_path`].
    ///
    /// # Errors
    /// If the path was not slow, or `tc` fails in the machine.
    pub fn quicken_path(&self, network: Network) -> Result<()> {
        self.run(&Command::new("tc").args(["qdisc", "del", "dev", network.interface(), "root"])).map(drop)
    }

    /// Stops all its CPUs at once, as a hypervisor may: it does not notice.
    ///
    /// # Errors
    /// If QEMU does not obey.
    pub fn freeze(&self) -> Result<()> {
        self.monitor("stop").map(drop)
    }

    /// Undoes [`Machine::freeze`].
    ///
    /// # Errors
    /// If QEMU does not obey.
    pub fn resume(&self) -> Result<()> {
        self.monitor("cont").map(drop)
    }

    /// Pulls the plug for good: QEMU is killed. Only for a machine that this process booted.
    ///
    /// # Errors
    /// [`Error::NoRun`] for a machine of another process.
    pub fn power_off(&self) -> Result<()> {
        if locked(&self.qemu).is_none() {
            return Err(Error::NoRun {
                what: format!("machine {} is not this process's to power off", self.name()),
            });
        }
        self.end_qemu();
        Ok(())
    }

    pub(super) fn monitor(&self, command: &str) -> Result<serde_json::Value> {
        let _one_at_a_time = locked(&self.monitor);
        qmp::execute(self.name(), &self.file("qmp"), command)
    }
}

/// How a slow link is slow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SlowLink {
    /// Each packet comes this much later.
    pub delay: Duration,
    /// So many of a hundred packets are lost.
    pub loss_percent: f32,
    /// At most so many kilobits a second.
    pub rate_kbit: Option<u32>,
}

impl SlowLink {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["delay".to_owned(), format!("{}us", self.delay.as_micros())];
        if self.loss_percent > 0.0 {
            words.extend(["loss".to_owned(), format!("{}%", self.loss_percent)]);
        }
        if let Some(rate) = self.rate_kbit {
            words.extend(["rate".to_owned(), format!("{rate}kbit")]);
        }
        // The default queue of 1000 packets would itself lose some of what is delayed.
        words.extend(["limit".to_owned(), "20000".to_owned()]);
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Daemon, Forward};

    #[test]
    fn a_slow_link_says_only_what_is_slow_about_it() {
        let delayed = SlowLink { delay: Duration::from_millis(20), ..SlowLink::default() };
        assert_eq!(delayed.words().join(" "), "delay 20000us limit 20000");
        let bad = SlowLink { loss_percent: 1.5, rate_kbit: Some(800), ..delayed };
        assert_eq!(bad.words().join(" "), "delay 20000us loss 1.5% rate 800kbit limit 20000");
    }

    #[test]
    fn machines_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Machine>();
        shared::<Daemon>();
        shared::<Forward>();
    }
}
