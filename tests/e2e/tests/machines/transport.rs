//! The operators' port: nobody without a certificate of the operators' CA.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::world::{Certificates, World};
use cleat_proto::cleat::v1::ListVolumesRequest;
use cleat_proto::cleat::v1::operator_client::OperatorClient;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Neither without a certificate, nor with a stranger's or an agent's, nor without TLS; and with ours it works.
pub(crate) async fn a_client_without_our_certificate_is_refused(world: &World) -> anyhow::Result<()> {
    let address = world.controller.operator_address();
    let ours = std::fs::read(world.folder().join("ca.pem")).context("read the CA")?;
    let tls = || ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ours));
    let strangers = tempfile::tempdir()?;
    let stranger = Certificates::make(strangers.path(), "127.0.0.1", "127.0.0.1", &[])?.operator;
    let stranger = Identity::from_pem(std::fs::read(stranger.cert)?, std::fs::read(stranger.key)?);
    let of = |name: &str| {
        let read = |file: String| std::fs::read(world.folder().join(file));
        anyhow::Ok(Identity::from_pem(read(format!("{name}.pem"))?, read(format!("{name}-key.pem"))?))
    };

    let secure = |tls: ClientTlsConfig| {
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
        anyhow::Ok(endpoint.timeout(Duration::from_secs(10)))
    };
    let plain = Endpoint::from_shared(format!("http://{address}"))?.timeout(Duration::from_secs(10));
    let none = secure(tls())?;
    let foreign = secure(tls().identity(stranger))?;
    let agent = secure(tls().identity(of(world.node(0).name())?))?;
    for (who, endpoint) in [
        ("without a certificate", none),
        ("with a stranger's", foreign),
        ("with an agent's", agent),
        ("without TLS", plain),
    ] {
        ensure!(!is_served(&endpoint).await, "a client {who} was served");
    }
    let own = secure(tls().identity(of("operator")?))?;
    ensure!(is_served(&own).await, "a client with our certificate was not served: the test shows nothing");
    Ok(())
}

async fn is_served(endpoint: &Endpoint) -> bool {
    OperatorClient::new(endpoint.connect_lazy()).list_volumes(ListVolumesRequest {}).await.is_ok()
}
