#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use cleat_kubernetes::reviews::Right;

use super::*;

/// A cluster that counts what it is asked, and answers once it is let.
struct Counting {
    asked: AtomicUsize,
    answers: Semaphore,
    good: bool,
}

impl Counting {
    fn of(good: bool, answers: usize) -> Arc<Self> {
        Arc::new(Self { asked: AtomicUsize::new(0), answers: Semaphore::new(answers), good })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[tonic::async_trait]
impl Cluster for Counting {
    async fn token(&self, token: &str, _: Option<&str>) -> Result<Reviewed, ApiError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.answers.acquire().await.unwrap().forget();
        Ok(if self.good {
            Reviewed::User(ClusterUser { name: token.into(), ..ClusterUser::default() })
        } else {
            Reviewed::Refused("no".into())
        })
    }

    async fn allowed(&self, _: &ClusterUser, _: &Right) -> Result<Result<(), String>, ApiError> {
        unreachable!("nobody asks")
    }
}

fn address(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_for_seconds_and_never_past_the_tokens_end() {
    let (cluster, reviews) = (Counting::of(true, 99), TokenReviews::new(None));
    let whose =
        async |token: &str, until| reviews.whose(&*cluster, token, address(1), until).await.unwrap().name;
    for _ in 0..3 {
        assert_eq!(whose("a", None).await, "a");
        assert_eq!(whose("b", None).await, "b");
    }
    assert_eq!(cluster.asked(), 2);
    tokio::time::advance(GOOD_FOR + Duration::from_millis(1)).await;
    assert_eq!(whose("a", None).await, "a");
    assert_eq!(cluster.asked(), 3, "its answer has become old");
    let over = Some(SystemTime::now());
    whose("c", over).await;
    whose("c", over).await;
    assert_eq!(cluster.asked(), 5, "what ends now is asked about again");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_bad_tokens_reaches_the_api_server_in_a_trickle() {
    let (cluster, reviews) = (Counting::of(false, 9_999), TokenReviews::new(None));
    let mut limited = 0;
    for n in 0..500 {
        match reviews.whose(&*cluster, &format!("bad{n}"), address(1), None).await {
            Err(NotKnown::TooMany) => limited += 1,
            other => assert_eq!(other, Err(NotKnown::Refused("no".into()))),
        }
    }
    assert!(cluster.asked() <= REFUSALS as usize + 2, "{}", cluster.asked());
    assert_eq!(limited + cluster.asked(), 500);
    let same = reviews.whose(&*cluster, "bad0", address(1), None).await;
    assert_eq!(same, Err(NotKnown::Refused("no".into())), "it is known");
    let before = cluster.asked();
    let other = reviews.whose(&*cluster, "other", address(2), None).await;
    assert_eq!(
        (other, cluster.asked()),
        (Err(NotKnown::Refused("no".into())), before + 1),
        "others are asked about"
    );
    tokio::time::advance(ONE_MORE * 2).await;
    let later = reviews.whose(&*cluster, "later", address(1), None).await;
    assert_eq!(later, Err(NotKnown::Refused("no".into())), "it is forgiven by and by");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_goes_before_each_answer_is_refused_after_a_while() {
    let (cluster, reviews) = (Counting::of(false, 0), TokenReviews::new(None));
    for n in 0..500 {
        let (token, gone) = (format!("bad{n}"), Duration::from_millis(1));
        let asked = reviews.whose(&*cluster, &token, address(1), None);
        let _ = tokio::time::timeout(gone, asked).await;
    }
    assert!(cluster.asked() <= REFUSALS as usize + 2, "{}", cluster.asked());
    cluster.answers.add_permits(9_999);
    tokio::time::advance(ONE_MORE * REFUSALS).await;
    for n in 0..500 {
        let good = Counting::of(true, 1);
        let user = reviews.whose(&*good, &format!("good{n}"), address(1), None).await;
        assert!(user.is_ok(), "whose tokens are good is not limited: {user:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_address_whose_questions_hang_holds_up_no_other() {
    let (cluster, reviews) = (Counting::of(true, 0), Arc::new(TokenReviews::new(None)));
    let ask = |token: String, from: IpAddr| {
        let (cluster, reviews) = (Arc::clone(&cluster), Arc::clone(&reviews));
        tokio::spawn(async move { reviews.whose(&*cluster, &token, from, None).await })
    };
    let flood: Vec<_> = (0..100).map(|n| ask(format!("flood{n}"), address(1))).collect();
    while cluster.asked() < AT_ONCE_EACH {
        tokio::task::yield_now().await;
    }
    let other = ask("other".into(), address(2));
    while cluster.asked() < AT_ONCE_EACH + 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(cluster.asked(), AT_ONCE_EACH + 1);
    tokio::time::advance(TURN + Duration::from_millis(1)).await;
    let mut gave_up = 0;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        gave_up = flood.iter().filter(|asked| asked.is_finished()).count();
    }
    assert_eq!(gave_up, 100 - AT_ONCE_EACH, "nobody waits for ever");
    cluster.answers.add_permits(AT_ONCE_EACH + 1);
    assert_eq!(other.await.unwrap().unwrap().name, "other");
}

#[test]
fn what_is_kept_is_bounded() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut answers = Answers(HashMap::new());
        for n in 0..KEPT * 2 {
            answers.keep(n, (), BAD_FOR);
        }
        assert_eq!(answers.0.len(), KEPT);
    });
}
