//! `cleat-kubevirt-player`: KubeVirt's objects in a cluster that has no KubeVirt, written as its programs write them.
//!
//! Prints a line for each step before it is played. Ends with 0 once the scene was played to its end.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use cleat_kubevirt::cluster::{Cluster, Container};
use cleat_kubevirt::definitions::definitions;
use cleat_kubevirt::play::play;
use cleat_kubevirt::scenes::{Cue, Scene};
use cleat_kubevirt::script::{Disk, Script, VmPlan};
use serde_json::json;
use tokio::time::Instant;

#[derive(Parser)]
#[command(name = "cleat-kubevirt-player", about, disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    does: Does,
}

#[derive(Subcommand)]
enum Does {
    /// Prints KubeVirt's kinds as far as they are played, for `kubectl apply -f -`.
    Definitions,
    /// Prints the names of all scenes.
    Scenes,
    /// Plays a scene.
    Play(Play),
}

#[derive(Args)]
struct Play {
    /// Which one (`cleat-kubevirt-player scenes` prints their names).
    #[arg(value_parser = scene)]
    scene: Scene,
    /// The nodes, in the order in which VMs come to them.
    #[arg(long = "node", value_name = "NAME")]
    nodes: Vec<String>,
    /// A VM with the claims of its disks; those that are plugged in while it runs with a + before.
    #[arg(long = "vm", value_name = "NAME=CLAIM,+CLAIM")]
    vms: Vec<String>,
    /// The namespace of VMs and claims.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// What pods run, where kubelets run them. Without it what kubelets say is played, too.
    #[arg(long)]
    image: Option<String>,
    /// The command in that image; it comes last.
    #[arg(long, value_name = "ARGUMENT", num_args = 1.., allow_hyphen_values = true, requires = "image")]
    command: Vec<String>,
    /// How fast: 2 is twice as fast as usual.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Each step waits for a line on standard input instead of its time.
    #[arg(long)]
    by_line: bool,
    /// Prints a JSON object a line.
    #[arg(long)]
    json: bool,
    /// kubectl.
    #[arg(long, default_value = "kubectl")]
    kubectl: PathBuf,
    /// Which cluster; without it, what kubectl takes.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut out = io::stdout();
    match Cli::parse().does {
        Does::Definitions => writeln!(out, "{}", definitions())?,
        Does::Scenes => {
            for scene in Scene::ALL {
                writeln!(out, "{}", scene.name())?;
            }
        }
        Does::Play(options) => options.play().await?,
    }
    Ok(())
}

impl Play {
    async fn play(self) -> anyhow::Result<()> {
        if !(self.speed > 0.0 && self.speed.is_finite()) {
            bail!("cannot play at speed {}: it is not above 0; give --speed a number that is", self.speed);
        }
        let plans: Vec<_> =
            self.vms.iter().map(|text| vm(&self.namespace, text)).collect::<Result<_, _>>()?;
        let cues = self.scene.cues(&plans, &self.nodes)?;
        let mut scripts: Vec<_> = plans.iter().cloned().map(Script::new).collect();
        let container = self.image.clone().map(|image| Container { image, command: self.command.clone() });
        let cluster =
            Cluster { kubectl: self.kubectl.clone(), kubeconfig: self.kubeconfig.clone(), container };
        let began = Instant::now();
        let before = async |cue: &Cue| {
            let name = plans.get(cue.vm).map_or("", |plan| plan.name.as_str());
            if !self.by_line {
                let at = Duration::from_millis(cue.at_ms).div_f64(self.speed);
                tokio::time::sleep_until(began + at).await;
            }
            self.show(cue, name, began.elapsed())?;
            if self.by_line && io::stdin().lock().read_line(&mut String::new())? == 0 {
                bail!(
                    "cannot go on: standard input has ended before the scene; give it a line for each step"
                );
            }
            Ok::<_, anyhow::Error>(())
        };
        play(&cluster, &mut scripts, &cues, before).await
    }

    fn show(&self, cue: &Cue, vm: &str, after: Duration) -> io::Result<()> {
        let (step, mut out) = (format!("{:?}", cue.step), io::stdout().lock());
        if self.json {
            writeln!(out, "{}", json!({"vm": vm, "step": step, "afterMs": after.as_millis() as u64}))?;
        } else {
            writeln!(out, "{:8.1} s  {vm}  {step}", after.as_secs_f64())?;
        }
        out.flush()
    }
}

fn scene(name: &str) -> Result<Scene, String> {
    let names = || Scene::ALL.map(Scene::name).join(", ");
    let found = Scene::ALL.into_iter().find(|scene| scene.name() == name);
    found.ok_or_else(|| format!("there is no such scene; take one of {}", names()))
}

fn vm(namespace: &str, text: &str) -> anyhow::Result<VmPlan> {
    let disk = |claim: &str| {
        let bare = claim.strip_prefix('+');
        Disk { claim: bare.unwrap_or(claim).to_owned(), hotplugged: bare.is_some() }
    };
    let (name, claims) = text
        .split_once('=')
        .with_context(|| format!("cannot read the VM {text}: it names no claim; write NAME=CLAIM,+CLAIM"))?;
    let disks = claims.split(',').map(disk).collect();
    Ok(VmPlan { namespace: namespace.to_owned(), name: name.to_owned(), disks })
}
