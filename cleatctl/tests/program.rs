//! `cleatctl` as the process that is installed.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn cleatctl(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cleatctl"));
    for variable in ["CLEAT_CONTROLLER", "COLUMNS", "KUBECONFIG"] {
        command.env_remove(variable);
    }
    command.args(words).env("HOME", "/nonexistent").output().unwrap()
}

/// The exit code, and what is on standard output and on standard error.
fn shown(words: &str) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = cleatctl(&words.split(' ').collect::<Vec<_>>());
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn an_error_names_what_is_wrong_and_what_to_do_and_has_its_exit_code() {
    let plain = "--plaintext --controller";
    for (words, code, expected) in [
        (
            "volumes",
            64,
            "cleatctl: cannot ask: no controller is named; pass --controller HOST:PORT or set CLEAT_CONTROLLER\n",
        ),
        (
            &format!("{plain} 127.0.0.1:1 volumes --tls-ca x"),
            64,
            "cleatctl: cannot use both --plaintext and TLS options; choose one\n",
        ),
        (
            "--controller 127.0.0.1:1 volumes",
            64,
            "cleatctl: cannot say who you are: neither a kubeconfig nor a certificate is given; pass --kubeconfig FILE (or \
             set KUBECONFIG), or --tls-ca, --tls-cert and --tls-key\n",
        ),
        (
            "explain",
            64,
            "error: the following required arguments were not provided:\n  <VOLUME>\n\n\
             Usage: cleatctl explain <VOLUME>\n\nFor more information, try '--help'.\n",
        ),
        (
            "migration web --watch --html x.html",
            64,
            "error: the argument '--watch' cannot be used with '--html <FILE>'\n\n\
             Usage: cleatctl migration --watch <VM|VOLUME>\n\nFor more information, try '--help'.\n",
        ),
        // Port 1 of this machine: nobody listens.
        (
            &format!("{plain} 127.0.0.1:1 volumes"),
            1,
            "cleatctl: cannot reach controller 127.0.0.1:1; see that it runs, and that this machine reaches that port: \
             transport error: tcp connect error: Connection refused (os error 111)\n",
        ),
    ] {
        assert_eq!(shown(words), (Some(code), String::new(), expected.to_owned()), "{words}");
    }
}

#[test]
fn help_lists_commands_options_and_exit_codes_and_exits_0() {
    let expected = r#"Show what the Cleat controller knows: what is attached where, on what evidence, and what waits for
what

Usage: cleatctl [OPTIONS] <COMMAND>

Commands:
  volumes     List tracked volumes: where each is attached, and what it waits for
  nodes       List nodes: whether their agents are connected, and what they hold
  migrations  List the latest live migration of each volume, with its timeline
  migration   Draw one live migration: the phases of each volume, and what it waits for now
  explain     Explain one volume: who may write to it, on what evidence, and what each request waits
              for
  watch       Show what happens, as it happens, until interrupted
  doctor      Find problems: drift (kernels, grants and staging paths that disagree), duplicate
              nodes, certificates that end soon, missing keys. Exits with 1 if there are any
  fence       Fence a node from a volume, whatever it is doing there, and wait for the proof
  ticket      Commands about tickets: why volumes should be attached somewhere, and for whom each
              waits
  node        Commands about one node
  rds         Commands about an RDS
  completion  Write what a shell needs to complete commands, volumes and nodes
  help        Print this message or the help of the given subcommand(s)

Options:
      --controller <HOST:PORT>  Address of the controller for operators (its --operator-listen)
                                [env: CLEAT_CONTROLLER=]
  -o, --output <OUTPUT>         Format of the answer [default: table] [possible values: table, json,
                                yaml]
      --color <WHEN>            Whether to colour states; auto: on a terminal, unless NO_COLOR is
                                set [default: auto] [possible values: auto, always, never]
      --timeout <DURATION>      Time limit for an answer [default: 10s]
  -h, --help                    Print help (see more with '--help')
  -V, --version                 Print version
"#;
    let (code, help, complaint) = shown("-h");
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    // The options for TLS are those of all programs.
    let (own, rest) = help.split_once("\nTLS:\n").unwrap();
    assert_eq!(own, expected);
    assert!(rest.ends_with("\n\nExit codes:\n  0   success\n  1   the command failed, or doctor found problems\n  64  wrong usage or configuration\n  Those of `ticket run` stand in its own help.\n"));
}

#[test]
fn bash_completes_once_it_has_read_the_completion() {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_cleatctl"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let script =
        "source <(cleatctl completion bash) && COMP_WORDS=(cleatctl exp) && COMP_CWORD=1 && COMP_TYPE=9
        _clap_complete_cleatctl cleatctl exp cleatctl 2>&1 && printf '%s' \"${COMPREPLY[*]}\"";
    let end = Command::new("bash").args(["-c", script]).env("PATH", path).output().unwrap();
    assert_eq!((String::from_utf8(end.stdout).unwrap().as_str(), end.status.code()), ("explain", Some(0)));
}
