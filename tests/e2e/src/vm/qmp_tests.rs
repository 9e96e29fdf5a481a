use std::os::unix::net::UnixListener;

use super::super::scripted::Scripted;
use super::*;

fn monitor(script: impl FnMut(&str, &Value) -> Vec<Value> + Send + 'static) -> Scripted {
    Scripted::serve("a", &Arc::default(), Box::new(script))
}

#[test]
fn events_in_between_are_kept_and_not_taken_for_the_answer() {
    let scripted = monitor(|_, _| {
        vec![
            json!({ "event": "STOP", "data": {} }),
            json!({ "return": { "status": "paused" } }),
            json!({ "event": "RESUME" }),
        ]
    });
    let qmp = scripted.connect();
    assert_eq!(qmp.status().expect("a status"), "paused");
    let stop = qmp.wait_event(0, "the stop", ANSWER, |event| event.name == "STOP").expect("it came");
    let resume = qmp.wait_event(1, "the resume", ANSWER, |_| true).expect("it came");
    assert_eq!(resume.name, "RESUME");
    assert!(stop.at <= resume.at);
}

#[test]
fn a_refusal_names_machine_command_and_reason() {
    let scripted = monitor(|_, _| vec![json!({ "error": { "class": "X", "desc": "no such command" } })]);
    let error = scripted.connect().execute("fly", json!({})).expect_err("refused").to_string();
    assert_eq!(error, "QEMU of vm refuses fly: no such command");
}

#[test]
fn answers_go_to_the_command_that_asked() {
    let scripted = monitor(|_, arguments| vec![json!({ "return": arguments })]);
    let qmp = scripted.connect();
    let ask = |number: u64| {
        qmp.execute("echo", json!({ "number": number })).expect("an answer")["number"] == number
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|number| scope.spawn(move || ask(number))).collect();
        assert!(all.into_iter().all(|one| one.join().expect("no panic")));
    });
}

#[test]
fn quitting_is_done_when_it_hangs_up() {
    let scripted = monitor(|_, _| Vec::new());
    let qmp = scripted.connect();
    qmp.quit().expect("it has gone");
    let error = qmp.execute("query-migrate", json!({})).expect_err("it has gone");
    assert!(format!("{error:#}").contains("QEMU of vm"), "{error:#}");
}

#[test]
fn an_event_that_does_not_come_names_those_that_did() {
    let scripted = monitor(|_, _| vec![json!({ "event": "STOP" }), json!({ "return": {} })]);
    let qmp = scripted.connect();
    qmp.execute("stop", json!({})).expect("an answer");
    let never = qmp.wait_event(0, "the resume", Duration::from_millis(20), |event| event.name == "RESUME");
    let error = format!("{:#}", never.expect_err("none came"));
    assert!(error.contains("events since: STOP") && error.contains("the resume of QEMU of vm"), "{error}");
}

#[test]
fn a_socket_with_nobody_behind_it_is_tried_until_the_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("qmp");
    let listener = UnixListener::bind(&socket).expect("a socket");
    // As a forward does whose machine has no such socket yet: it takes connections and ends them.
    std::thread::spawn(move || listener.incoming().take(2).for_each(drop));
    let error = Qmp::connect("vm", &socket, Duration::from_millis(120)).expect_err("nobody is there");
    assert!(error.to_string().contains("does not greet within 120ms"), "{error:#}");
}

#[test]
fn what_is_no_json_ends_it_with_the_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("qmp");
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(b"{\"QMP\":{}}\nqemu: oops\n").expect("written");
        // Until the client goes.
        let _ = BufReader::new(stream).lines().count();
    });
    let error = Qmp::connect("vm", &socket, Duration::from_secs(10)).expect_err("no answer");
    assert!(format!("{error:#}").contains("qemu: oops"), "{error:#}");
}

#[test]
fn a_monitor_on_the_network_answers_as_one_on_a_file_does() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("its address");
    let serves = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let mut lines = BufReader::new(stream.try_clone().expect("the same")).lines();
        let say = |message: Value| writeln!(&stream, "{message}").expect("said");
        say(json!({ "QMP": {} }));
        while let Some(Ok(line)) = lines.next() {
            let asked: Value = serde_json::from_str(&line).expect("a command");
            say(json!({ "return": { "status": "running" }, "id": asked["id"] }));
        }
    });
    let qmp = Qmp::connect_tcp("pod", address, ANSWER).expect("it greets");
    assert_eq!(qmp.status().expect("a status"), "running");
    drop(qmp);
    serves.join().expect("its end is heard there");
}
