//! The port that agents and operators share: nobody without a certificate of our CA.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::world::{Certificates, World};
use cleat_proto::cleat::v1::ListVolumesRequest;
use cleat_proto::cleat::v1::operator_client::OperatorClient;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Neither without a certificate, nor with a stranger's, nor without TLS; and with ours it works.
pub(crate) async fn a_client_without_our_certificate_is_refused(world: &World) -> anyhow::Result<()> {
    let address = world.controller.address();
    let ours = std::fs::read(world.folder().join("ca.pem")).context("read the CA")?;
    let tls = || ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ours));
    let strangers = tempfile::tempdir()?;
    let stranger = Certificates::make(strangers.path(), "127.0.0.1", "127.0.0.1")?.client;
    let stranger = Identity::from_pem(std::fs::read(stranger.cert)?, std::fs::read(stranger.key)?);

    let secure = |tls: ClientTlsConfig| {
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
        anyhow::Ok(endpoint.timeout(Duration::from_secs(10)))
    };
    let plain = Endpoint::from_shared(format!("http://{address}"))?.timeout(Duration::from_secs(10));
    let none = secure(tls())?;
    let foreign = secure(tls().identity(stranger))?;
    for (who, endpoint) in
        [("without a certificate", none), ("with a stranger's", foreign), ("without TLS", plain)]
    {
        ensure!(!is_served(&endpoint).await, "a client {who} was served");
    }
    let read = |name: &str| std::fs::read(world.folder().join(name));
    let own = secure(tls().identity(Identity::from_pem(read("client.pem")?, read("client-key.pem")?)))?;
    ensure!(is_served(&own).await, "a client with our certificate was not served: the test shows nothing");
    Ok(())
}

async fn is_served(endpoint: &Endpoint) -> bool {
    OperatorClient::new(endpoint.connect_lazy()).list_volumes(ListVolumesRequest {}).await.is_ok()
}
