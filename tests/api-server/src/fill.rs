//! A large cluster: very many volumes, their PersistentVolumes and VolumeAttachments as a provisioner and an attacher leave
//! them, and no larger than they have to be; and Nodes as large as kubelets make them.

use std::path::Path;
use std::time::Duration;

use cleat_kubernetes::attachments::usual_name;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use super::{Cluster, DRIVER};

/// Requests that are under way at once.
const AT_ONCE: usize = 64;
/// A busy API server is asked again.
const TRIES: u32 = 20;
const AGAIN: Duration = Duration::from_millis(500);
/// So many images a kubelet names in its Node, which is most of one.
const IMAGES: usize = 50;

/// Does it for each, many at once, until each is done.
pub async fn at_once<T, E: std::fmt::Debug>(
    each: impl Iterator<Item = T>,
    work: impl AsyncFn(&T) -> Result<(), E>,
) {
    let work = &work;
    let done = futures_util::stream::iter(each).for_each_concurrent(AT_ONCE, |one| async move {
        for tries in 1.. {
            match work(&one).await {
                Ok(()) => return,
                Err(error) => assert!(tries < TRIES, "{error:?}"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    });
    done.await;
}

fn made<T>(answer: kube::Result<T>) -> kube::Result<()> {
    match answer {
        // By a try whose answer was lost.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        answer => answer.map(drop),
    }
}

async fn client(kubeconfig: &Path) -> Client {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

impl Cluster {
    /// Volumes that are attached, each to its node, under its epoch: `(volume, node, epoch)`.
    pub async fn attached_already(&self, volumes: &[(String, String, String)]) {
        let client = client(&self.kubeconfig()).await;
        let (pvs, attachments) =
            (Api::<PersistentVolume>::all(client.clone()), Api::<VolumeAttachment>::all(client));
        let (new, as_usual) = (PostParams::default(), PatchParams::default());
        at_once(volumes.iter(), async |(volume, node, epoch)| {
            let pv = json!({
                "metadata": {"name": format!("pv-{volume}")},
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
                    "persistentVolumeReclaimPolicy": "Retain", "csi": {"driver": DRIVER, "volumeHandle": volume},
                },
            });
            made(pvs.create(&new, &object(pv)).await)?;
            let name = usual_name(volume, DRIVER, node);
            let attachment = json!({
                "metadata": {"name": name},
                "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": format!("pv-{volume}")}},
            });
            made(attachments.create(&new, &object(attachment)).await)?;
            // A create leaves the status out.
            let status = json!({"status": {"attached": true, "attachmentMetadata": {"cleat.io/epoch": epoch}}});
            made(attachments.patch_status(&name, &as_usual, &Patch::Merge(&status)).await)
        })
        .await;
    }

    /// Nodes of these names.
    pub async fn nodes(&self, names: &[String]) {
        let nodes = Api::<Node>::all(client(&self.kubeconfig()).await);
        let (new, as_usual) = (PostParams::default(), PatchParams::default());
        let image = |number| {
            let hash = format!("{number:064x}");
            let names = [
                format!("images.example.org/a/program@sha256:{hash}"),
                format!("images.example.org/a/program:{number}"),
            ];
            json!({"names": names, "sizeBytes": 100_000_000 + number})
        };
        let images: Vec<Value> = (0..IMAGES).map(image).collect();
        at_once(names.iter(), async |name| {
            made(nodes.create(&new, &object(json!({"metadata": {"name": name}}))).await)?;
            let status = json!({"status": {"images": images}});
            made(nodes.patch_status(name, &as_usual, &Patch::Merge(&status)).await)
        })
        .await;
    }
}

fn object<T: serde::de::DeserializeOwned>(of: Value) -> T {
    serde_json::from_value(of).unwrap()
}
