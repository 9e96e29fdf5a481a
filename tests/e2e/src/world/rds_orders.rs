//! Orders to the RDS from outside of Cleat: an administrator's over its REST API, and a test's over its control.

use std::time::Duration;

use anyhow::{Context, bail};
use rds_sim::held::Hold as WriteHold;
use rds_sim::pretend::{Pretend, PretendRequest};
use reqwest::Method;
use serde_json::{Value, json};

use super::Rds;
use super::rds::{PASSWORD, SLOW_ANSWER, USER};

impl Rds {
    // ---- as an administrator ----

    /// Sets a volume's host list over the REST API, as an administrator could: behind the controller's back.
    ///
    /// # Errors
    /// If the RDS refuses, or does not answer.
    pub async fn set_allowed_hosts(&self, volume_id: &str, host_nqns: &[String]) -> anyhow::Result<()> {
        let body = json!({ "nvme-tcp-server-allow-host-name": host_nqns.join(",") });
        self.patch_disk(volume_id, &body).await
    }

    /// Takes a volume's export off, or puts it on again, behind the controller's back. Off is answered when the
    /// target has let go of what it had received.
    ///
    /// # Errors
    /// If the RDS refuses, or does not answer.
    pub async fn set_export(&self, volume_id: &str, on: bool) -> anyhow::Result<()> {
        self.patch_disk(volume_id, &json!({ "nvme-tcp-export": if on { "yes" } else { "no" } })).await
    }

    /// Sets the password that hosts authenticate with, behind the controller's back.
    ///
    /// # Errors
    /// If the RDS refuses, or does not answer.
    pub async fn set_password(&self, volume_id: &str, password: &str) -> anyhow::Result<()> {
        self.patch_disk(volume_id, &json!({ "nvme-tcp-server-password": password })).await
    }

    /// Takes a disk and its file away, behind the controller's back.
    ///
    /// # Errors
    /// If the RDS refuses, or does not answer.
    pub async fn remove_disk(&self, volume_id: &str) -> anyhow::Result<()> {
        let disk = self.disk(volume_id).await?;
        self.rest(Method::DELETE, &format!("disk/{}", disk.id), &json!({})).await?;
        self.sh(&format!("rm -f {}", disk.file.display())).await.map(drop)
    }

    async fn patch_disk(&self, volume_id: &str, body: &Value) -> anyhow::Result<()> {
        let id = self.disk(volume_id).await?.id;
        self.rest(Method::PATCH, &format!("disk/{id}"), body).await
    }

    /// Makes a disk over the REST API, as an administrator could.
    ///
    /// # Errors
    /// If the RDS refuses, or does not answer.
    pub async fn put_disk(&self, properties: &Value) -> anyhow::Result<()> {
        self.rest(Method::PUT, "disk", properties).await
    }

    async fn rest(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<()> {
        let ca = std::fs::read(&self.certificates.ca).context("read the CA")?;
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca)?])
            .timeout(SLOW_ANSWER)
            .build()?;
        let url = format!("{}/rest/{path}", self.url());
        let request = client.request(method, url).basic_auth(USER, Some(PASSWORD)).json(body);
        let answer = request.send().await.with_context(|| format!("ask the RDS for {path}"))?;
        if !answer.status().is_success() {
            let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
            bail!("the RDS refuses {path}: {status} {text}");
        }
        Ok(())
    }

    // ---- as a test ----

    /// Lets the RDS leave a step of a fence out from now on, and say that it was taken.
    ///
    /// # Errors
    /// If rds-sim does not answer.
    pub async fn pretend(&self, pretend: Pretend) -> anyhow::Result<()> {
        self.post("pretend", &PretendRequest { pretend }).await
    }

    /// Makes good what was only pretended.
    ///
    /// # Errors
    /// If rds-sim or its kernel refuses.
    pub async fn pretend_nothing(&self) -> anyhow::Result<()> {
        let answer = self.http.delete(self.control("pretend")).timeout(SLOW_ANSWER).send().await;
        answer.and_then(reqwest::Response::error_for_status).context("end rds-sim's pretending").map(drop)
    }

    /// Holds the writes to a volume's first bytes for so long; zero lets them go. Needs `--backing held`.
    ///
    /// # Errors
    /// If rds-sim or its kernel refuses.
    pub async fn hold_writes(&self, slot: &str, time: Duration, first_bytes: u64) -> anyhow::Result<()> {
        let write_ms = u32::try_from(time.as_millis()).context("hold writes for so long")?;
        let hold = WriteHold { slot: slot.to_owned(), write_ms, first_bytes: Some(first_bytes) };
        self.post("hold-writes", &hold).await
    }
}

/// How much the target has on its hands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Burden {
    /// Writes that the backing stores hold.
    pub in_flight: u64,
    /// Bytes of hosts that the target has not taken out of its sockets yet.
    pub unread_bytes: u64,
}

impl Rds {
    /// What the target's stores and sockets hold at this moment. Needs `--backing held`.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub async fn burden(&self) -> anyhow::Result<Burden> {
        let text = self.sh("/usr/sbin/dmsetup status --target delay; echo --; cat /proc/net/tcp").await?;
        let (stores, sockets) = text.split_once("--").context("the target's burden")?;
        // `NAME: START LENGTH delay READS WRITES FLUSHES`: what is held at this moment.
        let writes = stores.lines().filter_map(|line| {
            let (_, held) = line.split_once(" delay ")?;
            held.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        // `sl local remote state tx:rx …`, all in hexadecimal; 1144 is port 4420, 01 an established connection.
        let unread = sockets.lines().filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next()?;
            let (_, state, queues) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = local.ends_with(":1144") && state == "01";
            let (_, rx) = queues.split_once(':').filter(|_| ours)?;
            u64::from_str_radix(rx, 16).ok()
        });
        Ok(Burden { in_flight: writes.sum(), unread_bytes: unread.sum() })
    }
}
