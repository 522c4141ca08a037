//! Copies the database into another one, transaction by transaction, as an import does; every copy keeps its hash.

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::{Session, bounded};
use super::super::setup::NAMES;
use super::{Ctx, Done, Op, elsewhere};

/// See the module.
pub struct Copy;

/// Transactions of one run.
const STEPS: u64 = 5;

impl Op for Copy {
    fn name(&self) -> &'static str {
        "import"
    }

    fn weight(&self) -> u64 {
        3
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let name = format!("copy{}", ctx.client);
            if !ctx.memory.copy_made {
                let replica = schema::ReplicationNullableSettings {
                    replica: Some(schema::NullableBool { value: true }),
                    ..Default::default()
                };
                let settings =
                    schema::DatabaseNullableSettings { replication_settings: Some(replica), ..Default::default() };
                let create =
                    schema::CreateDatabaseRequest { name: name.clone(), settings: Some(settings), if_not_exists: true };
                ctx.create(create).await?;
                ctx.memory.copy_made = true;
            }
            let (shared, node) = (ctx.shared, ctx.rng.below(ctx.nodes as u64) as usize);
            let mut copy = elsewhere(shared, self.name(), node, Session::open(NAMES[node], &name)).await?;
            // A copy whose outcome is unknown may be there.
            let request = copy.request(());
            let state = elsewhere(shared, self.name(), node, bounded(copy.api.current_state(request))).await?;
            ctx.memory.copied = state.tx_id;
            for _ in 0..STEPS {
                let tx = ctx.memory.copied + 1;
                if tx > ctx.memory.newest {
                    return Ok(if tx > 1 { Done::Well } else { Done::Refused });
                }
                let export = schema::ExportTxRequest { tx, ..Default::default() };
                let request = ctx.session.request(export);
                let mut stream = bounded(ctx.session.api.export_tx(request)).await?;
                let all = async {
                    let mut chunks = Vec::new();
                    while let Some(chunk) = stream.message().await? {
                        chunks.push(chunk);
                    }
                    Ok(tonic::Response::new(chunks))
                };
                let chunks = bounded(all).await?;
                let request = copy.request(futures::stream::iter(chunks));
                let there = elsewhere(shared, self.name(), node, bounded(copy.api.replicate_tx(request))).await?;
                let request = ctx.session.request(schema::TxRequest { tx, ..Default::default() });
                let here = bounded(ctx.session.api.tx_by_id(request)).await?.header.unwrap_or_default();
                if there.id != tx || there != here {
                    ctx.wrong(format!("I1: the copy of transaction {tx} has another header: {here:?}, {there:?}"));
                }
                ctx.memory.copied = tx;
                shared.borrow_mut().history.copied.insert(name.clone(), tx);
            }
            Ok(Done::Well)
        })
    }
}
