//! Questions to the controller, each with a deadline; each failure names the address.

use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use cleat_runtime::grpc::{self, Keepalive, TransportError};
use cleat_runtime::tls::{ClientTlsArgs, TlsError};
use proto::operator_client::OperatorClient;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// The largest answer that is read: everything about some fifty thousand volumes.
const ANSWER_BYTES: usize = 128 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no controller given; pass --controller HOST:PORT or set CLEAT_CONTROLLER")]
    NoController,
    #[error("cannot use both --plaintext and TLS options; choose one")]
    PlaintextAndTls,
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot use controller {address}")]
    Transport {
        address: String,
        #[source]
        source: TransportError,
    },
    #[error("cannot reach controller {address}")]
    Unreachable {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("controller {address} did not answer within {}; allow more with --timeout", humantime::format_duration(*.timeout))]
    NoAnswer { address: String, timeout: Duration },
    #[error("controller {address}: {} ({:?})", status.message(), status.code())]
    Refused { address: String, status: Box<Status> },
    #[error("{} {} found", .0, if *.0 == 1 { "problem" } else { "problems" })]
    Problems(usize),
    #[error("cannot write the answer")]
    Output(#[source] std::io::Error),
}

/// A connection to a controller.
pub(crate) struct Controller {
    client: OperatorClient<Channel>,
    address: String,
    timeout: Duration,
}

impl Controller {
    pub(crate) async fn connect(
        address: &str,
        tls: &ClientTlsArgs,
        timeout: Duration,
    ) -> Result<Self, AskError> {
        let address = address.to_owned();
        // Clap does not see a conflict between options on different sides of the command; and TLS that
        // somebody asked for is never left out.
        if tls.plaintext && (tls.tls_ca.is_some() || tls.tls_cert.is_some() || tls.tls_key.is_some()) {
            return Err(AskError::PlaintextAndTls);
        }
        let transport = tls.load()?;
        let endpoint = grpc::endpoint(&address, &transport, Keepalive::default())
            .map_err(|source| AskError::Transport { address: address.clone(), source })?;
        let channel = tokio::time::timeout(timeout, endpoint.connect())
            .await
            .map_err(|_| AskError::NoAnswer { address: address.clone(), timeout })?
            .map_err(|source| AskError::Unreachable { address: address.clone(), source })?;
        let client = OperatorClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        Ok(Self { client, address, timeout })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    fn refused(&self, status: Status) -> AskError {
        AskError::Refused { address: self.address.clone(), status: Box::new(status) }
    }

    pub(crate) async fn volumes(&mut self) -> Result<Vec<proto::VolumeInfo>, AskError> {
        let request = self.request(proto::ListVolumesRequest {});
        let answer = self.client.list_volumes(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner().volumes)
    }

    pub(crate) async fn volume(&mut self, volume_id: String) -> Result<proto::VolumeInfo, AskError> {
        let request = self.request(proto::GetVolumeRequest { volume_id });
        let answer = self.client.get_volume(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner())
    }

    /// Fences a node and waits for the proof: longer than for other answers.
    pub(crate) async fn fence(
        &mut self,
        fence: proto::FenceRequest,
        wait: Duration,
    ) -> Result<Option<proto::VolumeInfo>, AskError> {
        let mut request = Request::new(fence);
        request.set_timeout(wait);
        let answer = self.client.fence(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner().volume)
    }

    pub(crate) async fn declare_gone(&mut self, gone: proto::DeclareGoneRequest) -> Result<(), AskError> {
        let request = self.request(gone);
        let answer = self.client.declare_gone(request).await;
        answer.map(drop).map_err(|status| self.refused(status))
    }

    pub(crate) async fn problems(&mut self) -> Result<Vec<proto::DriftInfo>, AskError> {
        let request = self.request(proto::ListDriftRequest {});
        let answer = self.client.list_drift(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner().drift)
    }

    pub(crate) async fn nodes(&mut self) -> Result<Vec<proto::NodeInfo>, AskError> {
        let request = self.request(proto::ListNodesRequest {});
        let answer = self.client.list_nodes(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner().nodes)
    }

    pub(crate) async fn migrations(&mut self) -> Result<Vec<proto::MigrationInfo>, AskError> {
        let request = self.request(proto::ListMigrationsRequest {});
        let answer = self.client.list_migrations(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner().migrations)
    }

    /// Without a deadline: it goes on until one side ends it.
    pub(crate) async fn watch(&mut self) -> Result<Streaming<proto::WatchEvent>, AskError> {
        let answer = self.client.watch(proto::WatchRequest {}).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner())
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(
        &self,
        events: &mut Streaming<proto::WatchEvent>,
    ) -> Result<Option<proto::WatchEvent>, AskError> {
        events.message().await.map_err(|status| self.refused(status))
    }
}
