//! Makes a database, writes and reads there, and removes it again.

use alhambra_proto::schema;
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::{Session, bounded};
use super::super::setup::NAMES;
use super::{Ctx, Done, Op, elsewhere};
use crate::history::Ending;

/// See the module.
pub struct MakeAndDrop;

impl Op for MakeAndDrop {
    fn name(&self) -> &'static str {
        "databases"
    }

    fn weight(&self) -> u64 {
        1
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            ctx.memory.sequence += 1;
            let name = format!("own{}x{}", ctx.client, ctx.memory.sequence);
            let create = schema::CreateDatabaseRequest { name: name.clone(), settings: None, if_not_exists: true };
            ctx.create(create).await?;
            // Nobody else knows it, so what was acknowledged is what is there.
            let (shared, node) = (ctx.shared, ctx.rng.below(ctx.nodes as u64) as usize);
            let mut own = elsewhere(shared, self.name(), node, Session::open(NAMES[node], &name)).await?;
            let (mut wrote, mut txs) = (None, 0);
            for i in 0..1 + ctx.rng.below(4) {
                let value = format!("{name}-{i}").into_bytes();
                txs = elsewhere(shared, self.name(), node, own.set(b"own", &value)).await?;
                ctx.note_database(&name, |database| database.wrote.push((txs, b"own".to_vec(), value.clone())));
                wrote = Some(value);
            }
            let read = elsewhere(shared, self.name(), node, own.get(b"own")).await?;
            if read != wrote {
                ctx.wrong(format!("D1: {name} had {wrote:?} at {txs} and shows {read:?}"));
            }
            // Not listed from here on.
            ctx.note_database(&name, |database| database.deleted = Some(Ending::Unknown));
            let unload = schema::UnloadDatabaseRequest { database: name.clone() };
            let request = ctx.session.request(unload);
            bounded(ctx.session.api.unload_database(request)).await?;
            let delete = schema::DeleteDatabaseRequest { database: name.clone() };
            let request = ctx.session.request(delete);
            bounded(ctx.session.api.delete_database(request)).await?;
            ctx.note_database(&name, |database| database.deleted = Some(Ending::Acknowledged(0)));
            if Session::open(NAMES[ctx.node], &name).await.is_ok() {
                ctx.wrong(format!("D1: {name} was deleted and takes a login"));
            }
            Ok(Done::Well)
        })
    }
}
