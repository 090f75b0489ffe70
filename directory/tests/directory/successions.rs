//! A node takes a new identity, and takes it back: the directory follows its signed word, and nobody else's.

use std::time::Duration;

use openred_directory::api::nodes::{NodeView, Registered};
use openred_proto::checked::succession::{Lineage, Step, Succession};
use openred_proto::label::Label;

use crate::fixture::{HOUR, Node, START, TestDirectory};

pub(crate) fn word(step: Step, old: &Node, new: &Node, sequence: u64) -> Vec<u8> {
    old.statement(Label::Succession, &Succession { step, old: old.id(), new: new.id(), sequence }.encode())
}

struct Case {
    test: TestDirectory,
    first: Node,
    second: Node,
    third: Node,
}

impl Case {
    /// The first is registered, a second ago.
    async fn new() -> Self {
        let case = Self { test: TestDirectory::new(), first: Node::new(1), second: Node::new(2), third: Node::new(3) };
        assert_eq!(case.register(&case.first, &[]).await, "stored");
        case.test.advance(Duration::from_secs(1));
        case
    }

    fn named(&self) -> Vec<u8> {
        word(Step::Succeed, &self.first, &self.second, START.0)
    }

    fn back(&self) -> Vec<u8> {
        word(Step::TakeBack, &self.first, &self.second, START.0 + 1)
    }

    /// The outcome, or the problem's code.
    async fn register(&self, node: &Node, words: &[Vec<u8>]) -> String {
        let mut card = node.card(self.test.now());
        card.lineage = Lineage::verify(words.iter().map(Vec::as_slice), node.id()).unwrap();
        let reply = self.test.register_bytes(node, &node.sign_card(&card)).await;
        if reply.status == 200 { reply.ok::<Registered>().outcome } else { reply.code() }
    }

    /// Whose card is given for this one.
    async fn found(&self, node: &Node) -> Option<String> {
        let reply = self.test.get(&format!("/api/v3/nodes/{}", node.id())).await;
        (reply.status == 200).then(|| reply.ok::<NodeView>().node)
    }
}

#[tokio::test]
async fn the_card_of_a_successor_is_found_under_the_older_id() {
    let case = Case::new().await;
    case.test.advance(Duration::from_secs(1));
    assert_eq!(case.register(&case.second, &[case.named()]).await, "stored");
    let second = Some(case.second.id().to_string());
    assert_eq!((case.found(&case.first).await, case.found(&case.second).await), (second.clone(), second));
    case.test.advance(Duration::from_secs(1));
    assert_eq!(case.register(&case.first, &[]).await, "node.succeeded", "the older one has spoken");
    let another = word(Step::Succeed, &case.first, &case.third, START.0 + 5);
    assert_eq!(case.register(&case.third, &[another]).await, "card.succession", "there is one successor");
    let on = word(Step::Succeed, &case.second, &case.third, START.0 + 6);
    assert_eq!(case.register(&case.third, &[case.named(), on]).await, "stored");
    assert_eq!(case.found(&case.first).await, Some(case.third.id().to_string()), "and on from there");
}

#[tokio::test]
async fn the_older_identity_takes_its_word_back_within_its_window() {
    let case = Case::new().await;
    case.test.advance(Duration::from_secs(1));
    case.register(&case.second, &[case.named()]).await;
    case.test.advance(HOUR * 71);
    assert_eq!(case.register(&case.first, &[case.named(), case.back()]).await, "stored");
    assert_eq!(case.found(&case.first).await, Some(case.first.id().to_string()));
    assert_eq!(case.found(&case.second).await, None, "it stood here as the older one alone");
    case.test.advance(Duration::from_secs(1));
    assert_eq!(case.register(&case.second, &[case.named()]).await, "card.succession");
}

#[tokio::test]
async fn after_the_window_it_is_too_late() {
    let case = Case::new().await;
    case.test.advance(Duration::from_secs(1));
    case.register(&case.second, &[case.named()]).await;
    case.test.advance(HOUR * 73);
    case.register(&case.second, &[case.named()]).await;
    assert_eq!(case.register(&case.first, &[case.named(), case.back()]).await, "card.succession");
    assert_eq!(case.found(&case.first).await, Some(case.second.id().to_string()));
}

#[tokio::test]
async fn a_bystander_that_was_named_and_taken_back_keeps_its_card() {
    let case = Case::new().await;
    assert_eq!(case.register(&case.second, &[]).await, "stored");
    case.test.advance(Duration::from_secs(1));
    assert_eq!(case.register(&case.first, &[case.named(), case.back()]).await, "stored");
    for key in [&case.first, &case.second] {
        assert_eq!(case.found(key).await, Some(key.id().to_string()));
    }
}

#[tokio::test]
async fn a_taking_back_ends_the_whole_line_of_the_successor() {
    let case = Case::new().await;
    case.register(&case.second, &[case.named()]).await;
    case.test.advance(Duration::from_secs(1));
    // The third shows only the end of its line.
    let on = word(Step::Succeed, &case.second, &case.third, START.0 + 6);
    assert_eq!(case.register(&case.third, &[on]).await, "stored");
    case.test.advance(Duration::from_secs(1));
    assert_eq!(case.register(&case.first, &[case.named(), case.back()]).await, "stored");
    assert_eq!(case.found(&case.first).await, Some(case.first.id().to_string()));
    assert_eq!((case.found(&case.second).await, case.found(&case.third).await), (None, None));
}

#[tokio::test]
async fn a_second_successor_does_not_come_first_where_the_older_id_never_was() {
    let case = Case { test: TestDirectory::new(), first: Node::new(1), second: Node::new(2), third: Node::new(3) };
    assert_eq!(case.register(&case.second, &[case.named()]).await, "stored");
    case.test.advance(Duration::from_secs(1));
    assert_eq!(case.register(&case.first, &[]).await, "node.succeeded");
    let another = word(Step::Succeed, &case.first, &case.third, START.0 + 5);
    assert_eq!(case.register(&case.third, &[another]).await, "card.succession");
    case.test.advance(Duration::from_secs(1));
    assert_eq!(case.register(&case.second, &[case.named()]).await, "stored");
}
