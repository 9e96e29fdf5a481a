//! The secret with which a host authenticates in band (DH-HMAC-CHAP), and how a connected controller gets
//! another one.
//!
//! Always holds: a secret is never printed. Its `Debug` hides it, it has no `Display`, and no error of this
//! crate carries it. It goes to the kernel's interface and to sysfs only, never onto a command line. Its
//! memory is wiped.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::ExactController;
use super::delete::{self, DisconnectError};
use crate::name::ControllerName;
use crate::sysfs::Sysfs;
use crate::work::{WorkError, Workers};

/// The attribute of a controller that holds its secret (`drivers/nvme/host/sysfs.c`; readable by root).
const ATTRIBUTE: &str = "dhchap_secret";

/// A text that the kernel refuses as a secret, but only after it has waited for an authentication that is
/// under way (`nvme_ctrl_dhchap_secret_store`: the wait in `nvme_auth_stop` comes before the check of the
/// text).
const NO_SECRET: &str = "DHHC-1:";

/// A secret in the form that the kernel takes: `DHHC-1:hh:<base64 of secret and CRC-32>:` (NVMe base
/// specification, "DH-HMAC-CHAP Secret Representation"). Cheap to clone: all clones share one memory, which
/// is wiped with the last.
#[derive(Clone, PartialEq, Eq)]
pub struct DhchapSecret(Arc<Zeroizing<String>>);

/// The error for a text that is no secret. It does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a DH-HMAC-CHAP secret: {rule}")]
pub struct InvalidSecret {
    /// The rule that the text breaks.
    pub rule: &'static str,
}

impl DhchapSecret {
    /// Checks a text. The kernel checks the CRC-32 at every connect, so this does not.
    ///
    /// # Errors
    /// [`InvalidSecret`] with the rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let broken = |rule| InvalidSecret { rule };
        let rest = text.strip_prefix("DHHC-1:").ok_or(broken("it begins with DHHC-1:"))?;
        let (hash, rest) = rest.split_once(':').ok_or(broken("a hash follows, then a colon"))?;
        if !["00", "01", "02", "03"].contains(&hash) {
            return Err(broken("the hash is 00, 01, 02 or 03"));
        }
        let secret = rest.strip_suffix(':').ok_or(broken("it ends with a colon"))?;
        let digits = secret.trim_end_matches('=');
        if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/') {
            return Err(broken("the secret is base64"));
        }
        // 32, 48 or 64 bytes, and 4 of CRC-32.
        match (secret.len(), secret.len() - digits.len()) {
            (48, 0) | (72, 2) | (92, 1) => Ok(Self(Arc::new(Zeroizing::new(text.to_owned())))),
            _ => Err(broken("the secret has 32, 48 or 64 bytes and a CRC-32")),
        }
    }

    /// The text, for the kernel only.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DhchapSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DhchapSecret(hidden)")
    }
}

/// Why a controller's secret could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RekeyError {
    /// The controller of that name is another one. Nothing was written.
    #[error("cannot change the secret of {controller}: it is not the expected controller: {found}")]
    NotTheTarget {
        /// The name that was meant, such as `nvme3`.
        controller: ControllerName,
        /// Which subsystem NQN or host NQN it has instead.
        found: String,
    },
    /// The controller does not exist any more.
    #[error("{controller} is gone")]
    Gone {
        /// The name that it had, such as `nvme3`.
        controller: ControllerName,
    },
    /// The controller was connected without a secret, and the kernel cannot add one to it.
    #[error("cannot change the secret of {controller}: it was connected without one; connect it again")]
    WithoutSecret {
        /// The name of the controller, such as `nvme3`.
        controller: ControllerName,
    },
    /// The kernel has no attribute for secrets.
    #[error(
        "cannot change the secret of {controller}: no {path}; this kernel cannot authenticate in band \
         (CONFIG_NVME_HOST_AUTH)"
    )]
    NoAuthentication {
        /// The name of the controller, such as `nvme3`.
        controller: ControllerName,
        /// The attribute that does not exist.
        path: PathBuf,
    },
    /// The attribute could not be read or written.
    #[error("cannot change the secret of {controller} ({path})")]
    Io {
        /// The name of the controller, such as `nvme3`.
        controller: ControllerName,
        /// The attribute, or the directory that was verified.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The secret was written, but sysfs shows another one.
    #[error("{controller} did not accept the secret")]
    NotTaken {
        /// The name of the controller, such as `nvme3`.
        controller: ControllerName,
    },
    /// The kernel accepted a text that is no secret, so there is no way to wait for its authentication.
    #[error("cannot tell whether {controller} has authenticated: its kernel accepts any text as a secret")]
    NotSettled {
        /// The name of the controller, such as `nvme3`.
        controller: ControllerName,
    },
    /// The deadline passed, or no thread could be started. The kernel may still take the secret.
    #[error("cannot change the secret of {controller}")]
    Work {
        /// The name of the controller, such as `nvme3`.
        controller: ControllerName,
        /// Why the work gave no result.
        #[source]
        source: WorkError,
    },
}

/// Gives a controller another secret, through the directory that was verified to be its own. A controller
/// that has the secret already is not given it again. A live controller authenticates again in the background
/// when it is written, under I/O; one that is reconnecting uses it at its next attempt. A re-authentication
/// that fails does not disturb a live connection. So this proves which secret the next connection will use,
/// not that the target accepts it.
///
/// It returns when no authentication is under way any more. A controller that is cut off in the middle of one
/// stays `resetting` and never connects again (seen on Linux 6.18), and a cut is the next step of a fence.
pub(super) async fn rekey(
    workers: &Workers,
    sysfs: &Sysfs,
    target: &ExactController,
    secret: &DhchapSecret,
    deadline: Duration,
) -> Result<(), RekeyError> {
    let (owned_sysfs, owned, secret) = (sysfs.clone(), target.clone(), secret.clone());
    let work = move || rekey_blocking(&owned_sysfs, &owned, &secret, write);
    // The write waits for an authentication that is under way (`nvme_auth_stop`).
    let done = workers.run(&format!("rekey {}", target.controller), deadline, work).await;
    done.unwrap_or_else(|source| Err(RekeyError::Work { controller: target.controller.clone(), source }))
}

/// Writes an attribute of sysfs. A test passes its own, in place of the kernel.
type Write = fn(&Path, &str) -> io::Result<()>;

fn write(path: &Path, text: &str) -> io::Result<()> {
    std::fs::write(path, text)
}

fn rekey_blocking(
    sysfs: &Sysfs,
    target: &ExactController,
    secret: &DhchapSecret,
    write: Write,
) -> Result<(), RekeyError> {
    let controller = || target.controller.clone();
    let attribute = Attribute::open(sysfs, target)?;
    match attribute.read()? {
        Some(current) if current.as_str() == secret.expose() => {}
        // Without a line feed: the kernel would keep it as part of the secret.
        Some(_) => {
            write(&attribute.through(), secret.expose()).map_err(|source| attribute.failed(source))?;
        }
        None => return Err(RekeyError::WithoutSecret { controller: controller() }),
    }
    // Done even where it had the secret already: an earlier write that nobody waited for may have started an
    // authentication.
    match write(&attribute.through(), NO_SECRET) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
        Err(source) => return Err(attribute.failed(source)),
        Ok(()) => {
            // The kernel took it for a secret: it must not stay.
            write(&attribute.through(), secret.expose()).map_err(|source| attribute.failed(source))?;
            return Err(RekeyError::NotSettled { controller: controller() });
        }
    }
    match attribute.read()? {
        Some(now) if now.as_str() == secret.expose() => Ok(()),
        _ => Err(RekeyError::NotTaken { controller: controller() }),
    }
}

/// The secret that a controller has; `None` where it was connected without one.
pub(super) async fn of(
    workers: &Workers,
    sysfs: &Sysfs,
    target: &ExactController,
    deadline: Duration,
) -> Result<Option<DhchapSecret>, RekeyError> {
    let (owned_sysfs, owned) = (sysfs.clone(), target.clone());
    let work = move || {
        let text = Attribute::open(&owned_sysfs, &owned)?.read()?;
        Ok(text.and_then(|text| DhchapSecret::parse(&text).ok()))
    };
    let read = workers.run(&format!("read secret of {}", target.controller), deadline, work).await;
    read.unwrap_or_else(|source| Err(RekeyError::Work { controller: target.controller.clone(), source }))
}

/// The attribute of one verified controller.
struct Attribute {
    dir: crate::sysfs::PinnedDir,
    controller: ControllerName,
    /// The path as an operator knows it, for errors.
    path: PathBuf,
}

impl Attribute {
    fn open(sysfs: &Sysfs, target: &ExactController) -> Result<Self, RekeyError> {
        let controller = target.controller.clone();
        let path = sysfs.controller_dir(&controller).join(ATTRIBUTE);
        match delete::open_verified(sysfs, target) {
            Ok(Some((dir, _))) => Ok(Self { dir, controller, path }),
            Ok(None) => Err(RekeyError::Gone { controller }),
            Err(DisconnectError::NotTheTarget { controller, found }) => {
                Err(RekeyError::NotTheTarget { controller, found })
            }
            Err(other) => Err(RekeyError::Io { controller, path, source: io::Error::other(other) }),
        }
    }

    fn through(&self) -> PathBuf {
        self.dir.path().join(ATTRIBUTE)
    }

    fn failed(&self, source: io::Error) -> RekeyError {
        let (controller, path) = (self.controller.clone(), self.path.clone());
        if source.kind() == io::ErrorKind::NotFound {
            return RekeyError::NoAuthentication { controller, path };
        }
        RekeyError::Io { controller, path, source }
    }

    /// Reads the secret; `None` for a controller without one.
    fn read(&self) -> Result<Option<Zeroizing<String>>, RekeyError> {
        let text = std::fs::read_to_string(self.through()).map(Zeroizing::new);
        let text = text.map_err(|source| self.failed(source))?;
        let text = Zeroizing::new(text.trim_end().to_owned());
        Ok((text.as_str() != "none" && !text.is_empty()).then_some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabrics::ExactController;
    use crate::fixtures::{ControllerSpec, Tree};
    use crate::name::HostNqn;

    const LONG: Duration = Duration::from_secs(20);
    const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000011";
    const NQN: &str = "nqn.2026-01.test:v1";

    fn text(letter: char) -> String {
        format!("DHHC-1:00:{}:", letter.to_string().repeat(48))
    }

    fn secret(letter: char) -> DhchapSecret {
        DhchapSecret::parse(&text(letter)).expect("valid")
    }

    fn tree() -> (Tree, ExactController) {
        let tree = Tree::new();
        tree.subsystem(0, NQN);
        let spec = ControllerSpec {
            instance: 0,
            subsystem: NQN,
            host_nqn: HOST,
            host_id: "00000000-0000-0000-0000-000000000011",
            portal: ("10.77.1.1", 4420),
            state: "live",
        };
        tree.controller(0, &spec);
        let target = ExactController {
            controller: ControllerName::from_instance(0),
            subsystem: NQN.parse().expect("valid"),
            host_nqn: HostNqn::parse(HOST).expect("valid"),
            incarnation: None,
        };
        (tree, target)
    }

    #[test]
    fn only_the_kernels_form_is_a_secret_and_none_is_ever_printed() {
        assert_eq!(format!("{:?}", secret('A')), "DhchapSecret(hidden)");
        for (length, padding) in [(48, ""), (70, "=="), (91, "=")] {
            let text = format!("DHHC-1:01:{}{padding}:", "A".repeat(length));
            assert!(DhchapSecret::parse(&text).is_ok(), "{length}");
        }
        for bad in ["", "secret", "DHHC-1:00:", "DHHC-1:09:A:", "DHHC-1:00:AAAA:", &text(','), &text('\n')] {
            let error = DhchapSecret::parse(bad).expect_err("no secret").to_string();
            assert!(bad.len() < 10 || !error.contains(bad), "{error}");
        }
    }

    /// As the kernel takes it: what is no secret is refused and changes nothing. What was written is kept beside it.
    fn as_the_kernel(path: &Path, text: &str) -> io::Result<()> {
        let log = path.with_extension("written");
        let before = std::fs::read_to_string(&log).unwrap_or_default();
        std::fs::write(&log, format!("{before}{text}\n"))?;
        if DhchapSecret::parse(text).is_err() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        std::fs::write(path, text)
    }

    #[tokio::test]
    async fn a_connected_controller_gets_another_secret_and_is_read_back() {
        let (tree, target) = tree();
        tree.set(0, ATTRIBUTE, &text('A'));
        let (workers, sysfs) = (Workers::new(), tree.sysfs());
        assert_eq!(of(&workers, &sysfs, &target, LONG).await.expect("reads"), Some(secret('A')));
        rekey_blocking(&sysfs, &target, &secret('B'), as_the_kernel).expect("taken");
        assert_eq!(of(&workers, &sysfs, &target, LONG).await.expect("reads"), Some(secret('B')));
        rekey_blocking(&sysfs, &target, &secret('B'), as_the_kernel).expect("has it already");
    }

    /// A controller that is cut off while it authenticates is never connected again.
    #[test]
    fn a_rekey_is_over_only_when_the_authentication_that_it_began_is() {
        let (tree, target) = tree();
        tree.set(0, ATTRIBUTE, &text('A'));
        let written = || {
            let attribute = tree.sysfs().controller_dir(&target.controller).join(ATTRIBUTE);
            std::fs::read_to_string(attribute.with_extension("written")).expect("something was written")
        };
        rekey_blocking(&tree.sysfs(), &target, &secret('B'), as_the_kernel).expect("taken");
        assert_eq!(written(), format!("{}\n{NO_SECRET}\n", text('B')));
        // One that is told again waits, too: the first may have been given up while the kernel was at it.
        rekey_blocking(&tree.sysfs(), &target, &secret('B'), as_the_kernel).expect("has it already");
        assert_eq!(written(), format!("{}\n{NO_SECRET}\n{NO_SECRET}\n", text('B')));
    }

    #[test]
    fn a_kernel_that_takes_any_text_keeps_the_secret_and_is_reported() {
        let (tree, target) = tree();
        tree.set(0, ATTRIBUTE, &text('A'));
        let error = rekey_blocking(&tree.sysfs(), &target, &secret('B'), write).expect_err("no way to wait");
        assert!(matches!(error, RekeyError::NotSettled { .. }), "{error}");
        let attribute = tree.sysfs().controller_dir(&target.controller).join(ATTRIBUTE);
        assert_eq!(std::fs::read_to_string(attribute).expect("reads"), text('B'));
    }

    #[tokio::test]
    async fn who_cannot_take_a_secret_says_why() {
        let (tree, target) = tree();
        let (workers, sysfs) = (Workers::new(), tree.sysfs());
        let refused = async |target: &ExactController| {
            rekey(&workers, &sysfs, target, &secret('A'), LONG).await.expect_err("refused")
        };
        assert!(matches!(refused(&target).await, RekeyError::NoAuthentication { .. }));
        tree.set(0, ATTRIBUTE, "none");
        assert!(matches!(refused(&target).await, RekeyError::WithoutSecret { .. }));
        let other =
            ExactController { subsystem: "nqn.2026-01.test:v2".parse().expect("valid"), ..target.clone() };
        let error = refused(&other).await;
        assert!(matches!(error, RekeyError::NotTheTarget { .. }), "{error}");
        let gone = ExactController { controller: ControllerName::from_instance(7), ..target };
        assert!(matches!(refused(&gone).await, RekeyError::Gone { .. }));
    }
}
