use super::*;
use crate::testing::kernel::{ConnectAnswer, Kernel};

fn at(port: u16) -> Portal {
    Portal::parse(&format!("10.0.1.1:{port}")).unwrap()
}

fn kernel(silent: &[u16]) -> Arc<Kernel> {
    let kernel = Arc::<Kernel>::default();
    kernel
        .change(|world| world.answers = silent.iter().map(|port| (at(*port), ConnectAnswer::Drop)).collect());
    kernel
}

async fn ask(portals: &Portals, kernel: &Arc<Kernel>, ports: std::ops::Range<u16>) -> Vec<bool> {
    join_all(ports.map(|port| async move { portals.ask(kernel, at(port)).await.is_ok() })).await
}

#[tokio::test(start_paused = true)]
async fn an_address_that_does_not_answer_is_dead_for_all_ports_by_one_question() {
    let portals = Portals::default();
    let all: Vec<u16> = (1..33).collect();
    let kernel = kernel(&all);
    assert_eq!(ask(&portals, &kernel, 1..33).await, [false; 32]);
    assert_eq!(kernel.world().asked.len(), 1);
    let why = portals.ask(&kernel, at(9)).await.unwrap_err();
    assert_eq!(why, "10.0.1.1 has not answered for 0.0 s: no answer to TCP");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(kernel.world().asked.len() < 1 + 10 * PORTS, "{}", kernel.world().asked.len());
    // One that answers again is met within the longest pause.
    kernel.change(|world| world.answers.clear());
    tokio::time::sleep(PAUSE.1 + PATIENCE).await;
    assert_eq!(portals.silence(at(9)), None);
    assert_eq!(ask(&portals, &kernel, 1..33).await, [true; 32]);
}

#[tokio::test(start_paused = true)]
async fn a_port_whose_packets_alone_are_dropped_does_not_stand_for_its_address() {
    let portals = Portals::default();
    let kernel = kernel(&[1]);
    // It was asked first, so at first it counts for all.
    assert_eq!(ask(&portals, &kernel, 1..9).await, [false; 8]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(ask(&portals, &kernel, 1..9).await, [false, true, true, true, true, true, true, true]);
    assert_eq!(portals.silence(at(2)), None);
    assert_eq!(portals.silence(at(1)).unwrap(), "10.0.1.1:1 does not answer");
}

#[tokio::test(start_paused = true)]
async fn a_portal_that_nobody_wants_any_more_is_not_probed() {
    let portals = Portals::default();
    let kernel = kernel(&[1]);
    assert_eq!(ask(&portals, &kernel, 1..2).await, [false]);
    tokio::time::sleep(WANTED * 2).await;
    let asked = kernel.world().asked.len();
    tokio::time::sleep(WANTED).await;
    assert_eq!(kernel.world().asked.len(), asked);
    assert_eq!(portals.silence(at(1)), None);
    // A volume that misses the path keeps it wanted.
    assert_eq!(ask(&portals, &kernel, 1..2).await, [false]);
    for _ in 0..40 {
        assert!(portals.is_silent_and_wanted(at(1)));
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_held_up_the_kernel_has_its_portal_probed_again() {
    let portals = Portals::default();
    let kernel = kernel(&[]);
    portals.note_connect(at(1), Duration::from_millis(80), true);
    portals.ask(&kernel, at(1)).await.unwrap();
    assert!(kernel.world().asked.is_empty() && !portals.is_slow(at(1)));
    portals.note_connect(at(1), Duration::from_secs(3), false);
    assert!(portals.is_slow(at(1)));
    portals.ask(&kernel, at(1)).await.unwrap();
    assert_eq!(kernel.world().asked.len(), 1);
}
