//! Registration with the kubelet: what the usual sidecar does, by the agent itself.
//!
//! Comes in: the kubelet's calls on a socket in its directory of plug-ins. Goes out: the driver's name and socket, and
//! whether the node is registered, as readiness.
//!
//! Always holds: the socket is there only while CSI is served, so the kubelet offers the node for volumes only then; one
//! that somebody removes, with the whole directory too, is made again.

use std::path::{Path, PathBuf};

use cleat_proto::pluginregistration::v1 as kubelet;
use cleat_runtime::grpc::{self, Keepalive};
use cleat_runtime::program::GivingUp;
use cleat_runtime::readiness::ReadyFlag;
use cleat_runtime::unix::{UnixError, UnixIncoming};
use kubelet::registration_server::{Registration, RegistrationServer};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::ServeError;

/// A plug-in that serves CSI.
const CSI_PLUGIN: &str = "CSIPlugin";
/// The version of CSI: the kubelet wants one of the first major version.
const CSI_VERSION: &str = "1.0.0";

/// The socket that the kubelet finds, and what is answered there.
#[derive(Debug)]
pub struct Registering {
    incoming: UnixIncoming,
    node: Registrant,
}

#[derive(Debug)]
struct Registrant {
    driver_name: String,
    csi_socket: PathBuf,
    registered: ReadyFlag,
}

impl Registering {
    /// Makes the socket, named after the driver. The kubelet's calls wait until [`Registering::serve`].
    ///
    /// # Errors
    /// What keeps the socket from being made, or from being safe there.
    pub async fn bind(
        dir: &Path,
        driver_name: &str,
        csi_socket: &Path,
        registered: ReadyFlag,
    ) -> Result<Self, UnixError> {
        let incoming = UnixIncoming::bind(dir.join(format!("{driver_name}-reg.sock"))).await?;
        let (driver_name, csi_socket) = (driver_name.to_owned(), csi_socket.to_owned());
        Ok(Self { incoming, node: Registrant { driver_name, csi_socket, registered } })
    }

    /// Ends the program when something else has taken the socket's place: another registrar for this driver.
    #[must_use]
    pub fn or_give_up(self, giving_up: GivingUp) -> Self {
        Self { incoming: self.incoming.or_give_up(giving_up), ..self }
    }

    /// Answers the kubelet until it is asked to stop.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn serve(self, stop: CancellationToken) -> Result<(), ServeError> {
        grpc::server(Keepalive::default())
            .add_service(RegistrationServer::new(self.node))
            .serve_with_incoming_shutdown(self.incoming, stop.cancelled_owned())
            .await?;
        Ok(())
    }
}

#[tonic::async_trait]
impl Registration for Registrant {
    async fn get_info(
        &self,
        _: Request<kubelet::InfoRequest>,
    ) -> Result<Response<kubelet::PluginInfo>, Status> {
        Ok(Response::new(kubelet::PluginInfo {
            r#type: CSI_PLUGIN.to_owned(),
            name: self.driver_name.clone(),
            endpoint: self.csi_socket.display().to_string(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<kubelet::RegistrationStatus>,
    ) -> Result<Response<kubelet::RegistrationStatusResponse>, Status> {
        let kubelet::RegistrationStatus { plugin_registered, error } = status.into_inner();
        if plugin_registered {
            tracing::info!(driver = self.driver_name, "the kubelet has registered this node's driver");
        } else {
            tracing::error!(
                driver = self.driver_name,
                error = cleat_runtime::text::harmless(&error, &[]),
                "the kubelet cannot register this node's driver, so no volume is attached here; it tries again"
            );
        }
        self.registered.set(plugin_registered);
        Ok(Response::new(kubelet::RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use cleat_runtime::readiness::Readiness;
    use kubelet::registration_client::RegistrationClient;
    use tonic::transport::Channel;

    use super::*;

    struct Kubelet {
        dir: tempfile::TempDir,
        readiness: Readiness,
        stop: CancellationToken,
    }

    impl Kubelet {
        async fn start() -> Self {
            let (dir, readiness) = (tempfile::tempdir().unwrap(), Readiness::default());
            let stop = CancellationToken::new();
            let plugins = dir.path().join("plugins_registry");
            let flag = readiness.flag("registered with the kubelet");
            let socket = Path::new("/var/lib/kubelet/plugins/cleat.io/csi.sock");
            let registering = Registering::bind(&plugins, "cleat.io", socket, flag).await.unwrap();
            tokio::spawn(registering.serve(stop.clone()));
            Self { dir, readiness, stop }
        }

        async fn connect(&self) -> Option<RegistrationClient<Channel>> {
            let path = self.dir.path().join("plugins_registry/cleat.io-reg.sock");
            let endpoint = grpc::unix_endpoint(&path, Keepalive::default()).unwrap();
            endpoint.connect().await.ok().map(RegistrationClient::new)
        }

        /// What a kubelet does when it sees the socket.
        async fn registers(&self, error: &str) {
            let mut found = self.connect().await.unwrap();
            let info = found.get_info(kubelet::InfoRequest {}).await.unwrap().into_inner();
            assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "cleat.io"));
            assert_eq!(info.endpoint, "/var/lib/kubelet/plugins/cleat.io/csi.sock");
            assert_eq!(info.supported_versions, ["1.0.0"]);
            let status =
                kubelet::RegistrationStatus { plugin_registered: error.is_empty(), error: error.into() };
            found.notify_registration_status(status).await.unwrap();
        }
    }

    impl Drop for Kubelet {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    #[tokio::test]
    async fn the_agent_is_ready_once_the_kubelet_has_registered_it() {
        let kubelet = Kubelet::start().await;
        assert_eq!(kubelet.readiness.missing(), ["registered with the kubelet"]);
        kubelet.registers("").await;
        assert!(kubelet.readiness.missing().is_empty());
        kubelet.registers("another driver has this name").await;
        assert_eq!(kubelet.readiness.missing(), ["registered with the kubelet"]);
    }

    #[tokio::test]
    async fn a_wiped_registry_gets_the_socket_again() {
        let kubelet = Kubelet::start().await;
        let plugins = kubelet.dir.path().join("plugins_registry");
        std::fs::remove_dir_all(&plugins).unwrap();
        std::fs::create_dir(&plugins).unwrap();
        let again = async {
            while kubelet.connect().await.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again).await.unwrap();
        kubelet.registers("").await;
    }
}
