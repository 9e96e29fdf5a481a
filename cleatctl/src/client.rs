//! Questions to the controller, each with a deadline; each failure names the address.

use std::path::PathBuf;
use std::time::Duration;

use cleat_kubernetes::identity::PersonError;
use cleat_proto::cleat::v1 as proto;
use cleat_runtime::grpc::{self, Keepalive, TransportError};
use cleat_runtime::tls::{ClientTlsArgs, TlsError};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use proto::operator_client::OperatorClient;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::identity::{self, Bearer, ClusterArgs};
use crate::ticket_run::TicketRunError;
use crate::timeline::NoMigration;

/// The largest answer that is read: everything about some fifty thousand volumes.
const ANSWER_BYTES: usize = 128 << 20;
/// How often controllers are connected to, where no one of them leads, and the pause between.
const TRIES: usize = 8;
const AGAIN: Duration = Duration::from_millis(100);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("cannot ask: no controller is named; pass --controller HOST:PORT or set CLEAT_CONTROLLER")]
    NoController,
    #[error("cannot use both --plaintext and TLS options; choose one")]
    PlaintextAndTls,
    #[error(
        "cannot be two at once: --kubeconfig and --context say who you are, and so do --tls-cert, --tls-key and --plaintext; \
         choose one"
    )]
    TwoIdentities,
    #[error(
        "cannot say who you are: neither a kubeconfig nor a certificate is given; pass --kubeconfig FILE (or set \
         KUBECONFIG), or --tls-ca, --tls-cert and --tls-key"
    )]
    Nobody,
    #[error(transparent)]
    Kubeconfig(#[from] PersonError),
    #[error("cannot read {} (--tls-ca)", path.display())]
    Ca {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot use the kubeconfig's client certificate, or the controller's CA")]
    Identity(#[source] tonic::transport::Error),
    #[error("cannot use the kubeconfig's token: it has letters that no token has")]
    NoToken,
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot use controller {address}")]
    Transport {
        address: String,
        #[source]
        source: TransportError,
    },
    #[error("cannot reach controller {address}; see that it runs, and that this machine reaches that port")]
    Unreachable {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error(
        "cannot wait for controller {address} any longer: no answer within {}; allow more with --timeout",
        humantime::format_duration(*.timeout)
    )]
    NoAnswer { address: String, timeout: Duration },
    #[error("controller {address}: {} ({:?})", status.message(), status.code())]
    Refused { address: String, status: Box<Status> },
    #[error("{} {} found", .0, if *.0 == 1 { "problem" } else { "problems" })]
    Problems(usize),
    #[error("cannot write the answer")]
    Output(#[source] std::io::Error),
    #[error("cannot write the page to {} (--html)", path.display())]
    Page {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot find ticket {0}: the controller knows none of that name; see cleatctl ticket ls")]
    NoTicket(String),
    #[error(transparent)]
    Migration(#[from] NoMigration),
    #[error(transparent)]
    TicketRun(#[from] TicketRunError),
}

/// Connects to the replica that says it serves, or else to any. One address may mean several replicas, and another one with
/// each connection (a Service): so where none serves, they are connected to again, for a while.
async fn leading(endpoints: &[Endpoint], patience: Duration) -> Result<Channel, tonic::transport::Error> {
    let (until, mut tries, mut standby) = (Instant::now() + patience, 0, None);
    loop {
        let channel = match first_that_serves(endpoints).await {
            Ok((channel, true)) => return Ok(channel),
            Ok((channel, false)) => channel,
            Err(error) => standby.ok_or(error)?,
        };
        tries += 1;
        if tries == TRIES || Instant::now() + AGAIN > until {
            return Ok(channel);
        }
        standby = Some(channel);
        tokio::time::sleep(AGAIN).await;
    }
}

/// All are asked side by side: a dead one holds up nobody. With it, whether it serves.
async fn first_that_serves(endpoints: &[Endpoint]) -> Result<(Channel, bool), tonic::transport::Error> {
    let mut asked: FuturesUnordered<_> = endpoints
        .iter()
        .map(|endpoint| async move {
            let channel = endpoint.connect().await?;
            let serves = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
            let serves = serves.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving);
            Ok::<_, tonic::transport::Error>((channel, serves))
        })
        .collect();
    let mut other = None;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok((_, true)) => return answer,
            Ok(_) => other = Some(answer),
            Err(_) => other = other.or(Some(answer)),
        }
    }
    match other {
        Some(other) => other,
        // It says what is wrong.
        None => endpoints[0].connect().await.map(|channel| (channel, false)),
    }
}

fn asks(channel: Channel) -> OperatorClient<Channel> {
    OperatorClient::new(channel).max_decoding_message_size(ANSWER_BYTES)
}

/// A connection to a controller.
pub(crate) struct Controller {
    client: OperatorClient<Channel>,
    /// All that the address means.
    endpoints: Vec<Endpoint>,
    address: String,
    timeout: Duration,
    bearer: Option<Bearer>,
}

impl Controller {
    pub(crate) async fn connect(
        address: &str,
        tls: &ClientTlsArgs,
        cluster: &ClusterArgs,
        timeout: Duration,
    ) -> Result<Self, AskError> {
        let address = address.to_owned();
        // Clap does not see a conflict between options on different sides of the command; and TLS that
        // somebody asked for is never left out.
        if tls.plaintext && (tls.tls_ca.is_some() || tls.tls_cert.is_some() || tls.tls_key.is_some()) {
            return Err(AskError::PlaintextAndTls);
        }
        let (transport, bearer) = identity::settle(tls, cluster, timeout).await?;
        let connected = tokio::time::timeout(timeout, async {
            let wrong = |source| AskError::Transport { address: address.clone(), source };
            let name = tls.tls_server_name.as_deref();
            let endpoints =
                grpc::endpoints(&address, &transport, name, Keepalive::default()).await.map_err(wrong)?;
            let unreachable = |source| AskError::Unreachable { address: address.clone(), source };
            let channel = leading(&endpoints, timeout / 2).await.map_err(unreachable)?;
            Ok::<_, AskError>((asks(channel), endpoints))
        });
        let (client, endpoints) =
            connected.await.map_err(|_| AskError::NoAnswer { address: address.clone(), timeout })??;
        Ok(Self { client, endpoints, address, timeout, bearer })
    }

    /// Looks for the controller that leads once more, after a call that was not answered: another one may lead by now.
    pub(crate) async fn find_again(&mut self) {
        let found = tokio::time::timeout(self.timeout, leading(&self.endpoints, self.timeout / 2)).await;
        // Where nobody can be reached, the one before is asked again.
        if let Ok(Ok(channel)) = found {
            self.client = asks(channel);
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.unlimited(message);
        request.set_timeout(self.timeout);
        request
    }

    fn unlimited<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
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

    /// The same where there may be none of that id.
    pub(crate) async fn volume_if_tracked(
        &mut self,
        id: String,
    ) -> Result<Option<proto::VolumeInfo>, AskError> {
        match self.volume(id).await {
            Ok(volume) => Ok(Some(volume)),
            Err(AskError::Refused { status, .. }) if status.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fences a node and waits for the proof: longer than for other answers.
    pub(crate) async fn fence(
        &mut self,
        fence: proto::FenceRequest,
        wait: Duration,
    ) -> Result<Option<proto::VolumeInfo>, AskError> {
        let mut request = self.unlimited(fence);
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

    pub(crate) async fn node(&mut self, node_id: String) -> Result<proto::NodeInfo, AskError> {
        let request = self.request(proto::GetNodeRequest { node_id });
        let answer = self.client.get_node(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner())
    }

    pub(crate) async fn migrations(&mut self) -> Result<Vec<proto::MigrationInfo>, AskError> {
        let request = self.request(proto::ListMigrationsRequest {});
        let answer = self.client.list_migrations(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner().migrations)
    }

    /// The tickets of one volume; of all, where its id is empty.
    pub(crate) async fn tickets(&mut self, volume_id: String) -> Result<Vec<proto::TicketInfo>, AskError> {
        let request = self.request(proto::ListTicketsRequest { volume_id });
        let answer = self.client.list_tickets(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner().tickets)
    }

    pub(crate) async fn ticket(&mut self, id: String) -> Result<proto::TicketInfo, AskError> {
        let request = self.request(proto::GetTicketRequest { id });
        let answer = self.client.get_ticket(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner())
    }

    pub(crate) async fn put_ticket(
        &mut self,
        wish: proto::PutTicketRequest,
    ) -> Result<proto::TicketInfo, AskError> {
        let request = self.request(wish);
        let answer = self.client.put_ticket(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner())
    }

    pub(crate) async fn renew_ticket(&mut self, id: String) -> Result<proto::TicketInfo, AskError> {
        let request = self.request(proto::RenewTicketRequest { id });
        let answer = self.client.renew_ticket(request).await;
        Ok(answer.map_err(|status| self.refused(status))?.into_inner())
    }

    pub(crate) async fn delete_ticket(&mut self, id: String) -> Result<(), AskError> {
        let request = self.request(proto::DeleteTicketRequest { id });
        let answer = self.client.delete_ticket(request).await;
        answer.map(drop).map_err(|status| self.refused(status))
    }

    /// Without a deadline: it goes on until one side ends it.
    pub(crate) async fn watch(&mut self) -> Result<Streaming<proto::WatchEvent>, AskError> {
        let request = self.unlimited(proto::WatchRequest {});
        let answer = self.client.watch(request).await;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    /// Replicas behind one address, each of which gets the next connection in turn; how many connections there were.
    async fn service(serve: &'static [ServingStatus]) -> (Endpoint, tokio::sync::watch::Receiver<usize>) {
        let mut replicas = Vec::new();
        for status in serve {
            let (connections, incoming) = tokio::sync::mpsc::channel::<std::io::Result<TcpStream>>(8);
            let (health, service) = tonic_health::server::health_reporter();
            let status = match status {
                ServingStatus::Serving => tonic_health::ServingStatus::Serving,
                _ => tonic_health::ServingStatus::NotServing,
            };
            health.set_service_status("", status).await;
            let server = grpc::server(Keepalive::default()).add_service(service);
            tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
            replicas.push(connections);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (count, counted) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            for replica in replicas.iter().cycle() {
                let (connection, _) = listener.accept().await.unwrap();
                replica.send(Ok(connection)).await.unwrap();
                count.send_modify(|count| *count += 1);
            }
        });
        (Endpoint::from_shared(format!("http://{address}")).unwrap(), counted)
    }

    async fn serves(channel: Channel) -> bool {
        let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
        answer.get_ref().status() == ServingStatus::Serving
    }

    #[tokio::test]
    async fn behind_one_address_a_standby_is_followed_by_the_replica_that_leads() {
        use ServingStatus::{NotServing, Serving};
        let (service, connections) = service(&[NotServing, NotServing, Serving]).await;
        assert!(serves(leading(&[service], Duration::from_secs(30)).await.unwrap()).await);
        assert_eq!(*connections.borrow(), 3);
    }

    #[tokio::test]
    async fn where_no_replica_leads_a_standby_is_asked_within_the_time() {
        let (service, connections) = service(&[ServingStatus::NotServing]).await;
        let one = std::slice::from_ref(&service);
        assert!(!serves(leading(one, Duration::from_secs(30)).await.unwrap()).await);
        assert_eq!(*connections.borrow(), TRIES);
        assert!(!serves(leading(one, Duration::ZERO).await.unwrap()).await);
        assert_eq!(*connections.borrow(), TRIES + 1);
    }

    #[tokio::test]
    async fn the_controller_that_leads_by_now_is_found_again() {
        let (service, connections) = service(&[ServingStatus::NotServing, ServingStatus::Serving]).await;
        let client = asks(service.connect().await.unwrap());
        let (address, timeout) = ("c:1".to_owned(), Duration::from_secs(30));
        let mut standby = Controller { client, endpoints: vec![service], address, timeout, bearer: None };
        standby.find_again().await;
        assert_eq!(*connections.borrow(), 2);
    }
}
