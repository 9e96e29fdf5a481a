//! Step 6: what the target really holds.

use anyhow::{Context, ensure};

use super::{Demo, Holder};
use crate::demo::sequence::judged;

impl Demo<'_> {
    pub(super) async fn read_back(&mut self) -> anyhow::Result<()> {
        let volume = self.volume()?;
        let Holder { mut writer, .. } = self.holder.take().context("no writer is running")?;
        let stopped = writer.stop().await?;
        let errors = stopped.errors.clone();
        self.sequence.add(stopped);

        let mut outcome = self.sequence.outcome(self.switchover_gap);
        let report = self.world.verify(&volume, &self.sequence.facts()).await?;
        judged(&mut outcome, &report);
        self.say.line(&format!("{} records read from the volume's file on the RDS machine:", report.writes));
        for region in &report.regions {
            let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
            self.say.detail(&format!(
                "{}: {} records, {} to {}, last acknowledged {}",
                region.node,
                region.writes,
                number(region.first),
                number(region.last),
                number(region.last_acked)
            ));
        }
        self.say.detail(&format!(
            "missing {}, doubled {}, late by a source {}, damaged {}",
            report.gaps, report.duplicates, report.late_writes_by_source, report.checksum_errors
        ));
        self.writer = Some(outcome.clone());
        ensure!(errors.is_empty(), "writes failed on node-c: {}", errors.join("; "));
        ensure!(
            outcome.errors == 0 && report.is_clean(),
            "the sequence is not whole: {}",
            report.findings.join("; ")
        );
        Ok(())
    }
}
