//! Migrations over the contract.
use super::*;

pub(super) async fn migrate(context: Context, from: String) -> Result<(), ModuleError> {
    match from.as_str() {
        "panics" => panic!("as asked"),
        "fails" => Err(ModuleError::new(Status::Conflict, "too-old", "cannot read that")),
        _ => Ok(context.put("migrated", from).await?),
    }
}

#[test]
fn a_module_migrates_what_it_is_given_or_says_why_not() {
    run(async {
        let node = Node::new().await;
        let (attached, _pipe) = node.attach(Probe::default()).await;
        attached.migrate("0.9").await.unwrap();
        assert!(attached.migrate("fails").await.unwrap_err().detail.contains("too-old: cannot read that"));
        assert!(attached.migrate("panics").await.unwrap_err().detail.contains("module-panicked"));
        attached.activate(7).await.unwrap();
        assert_eq!(said(attached.dispatch(post("/echo", Body::whole("x"))).await).await.1, "x", "the rest goes on");
        assert_eq!(attached.running(), 0);
    });
}
