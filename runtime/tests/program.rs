//! The whole way from `main` to the exit code, in child processes: this binary runs itself as the program.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cleat_runtime::{Common, Context, Failure, Program};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CHILD: &str = "CLEAT_TEST_CHILD";

#[derive(clap::Parser)]
#[command(version = cleat_runtime::VERSION)]
struct Cli {
    #[command(flatten)]
    common: Common,
    /// What to do: stop when asked, `hang`, look whether it is `private`, refuse the configuration, or fail
    #[arg(long, default_value = "stop")]
    then: String,
}

impl Program for Cli {
    const NAME: &'static str = "test-program";

    fn common(&self) -> &Common {
        &self.common
    }
}

async fn program(cli: Cli, context: Context) -> Result<(), Failure> {
    tracing::info!("up");
    match cli.then.as_str() {
        "config" => return Err(Failure::config("the file is wrong")),
        "private" => {
            let dumpable = nix::sys::prctl::get_dumpable();
            assert_eq!(dumpable, Ok(false), "others of this user could read keys and passwords from memory");
            return Ok(());
        }
        "fail" => return Err(Failure::failed("the disk is gone")),
        _ => context.stop.cancelled().await,
    }
    if cli.then == "hang" {
        std::future::pending::<()>().await;
    }
    Ok(())
}

fn spawn(args: &[&str]) -> std::process::Child {
    let exe = std::env::current_exe().expect("own path");
    let mut command = Command::new(exe);
    command.args(args).env(CHILD, "1").stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("spawn")
}

/// Runs to the end; sends SIGTERM once the program is up if `terminate`. Gives exit code and logs.
fn run(args: &[&str], terminate: bool) -> (Option<i32>, String) {
    let mut child = spawn(args);
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut log = String::new();
    while terminate && !log.contains("up") {
        assert_ne!(stderr.read_line(&mut log).expect("logs"), 0, "ended early: {log}");
    }
    if terminate {
        kill(Pid::from_raw(child.id().try_into().expect("pid")), Signal::SIGTERM).expect("signal");
    }
    stderr.read_to_string(&mut log).expect("logs");
    (child.wait().expect("wait").code(), log)
}

fn main() -> ExitCode {
    if std::env::var_os(CHILD).is_some() {
        return cleat_runtime::run(program);
    }
    let (code, log) = run(&[], true);
    assert_eq!(code, Some(0), "stops cleanly at SIGTERM: {log}");

    let (code, log) = run(&["--then", "private"], false);
    assert_eq!(code, Some(0), "no core dump and no other process shows its memory: {log}");

    let began = Instant::now();
    let (code, log) = run(&["--then", "hang", "--shutdown-timeout", "200ms"], true);
    assert_eq!(code, Some(70), "the timeout is hard: {log}");
    assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());

    for wrong in [
        &["--no-such-option"][..],
        &["--log-filter", "=="],
        &["--metrics-listen", "nowhere"],
        &["--then", "config"],
    ] {
        let (code, log) = run(wrong, false);
        assert_eq!(code, Some(64), "{wrong:?} is bad configuration: {log}");
    }
    let (code, log) = run(&["--log-format", "json", "--then", "fail"], false);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(r#""error":"the disk is gone""#), "{log}");
    assert_eq!(run(&["--version"], false).0, Some(0));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = taken.local_addr().expect("address").to_string();
    let (code, log) = run(&["--metrics-listen", &addr], false);
    assert_eq!(code, Some(1));
    assert!(log.contains(&addr) && !log.contains("up\n"), "{log}");
    ExitCode::SUCCESS
}
