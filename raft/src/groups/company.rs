//! Looks whether the peers of this node are of its cluster, for as long as it runs: a node that is alone when it starts learns
//! later that it is in the wrong place.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Groups;
use crate::forming::Identity;
use crate::forming::driver::Channels;
use crate::link::LinkError;
use crate::network::Network;

/// How often those are asked who have not answered, until a majority has.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often after that.
const LOOK_INTERVAL_SOUND: Duration = Duration::from_secs(1);

impl Groups {
    /// Runs for as long as the node; ends it when it learns that its data folder is of another cluster than its peers.
    pub(super) async fn watch_company(
        self: Arc<Self>,
        identity: Identity,
        network: Arc<Network>,
        mut channels: Channels,
    ) {
        loop {
            // Both sides of a link say which cluster they are of, so nobody who is connected needs to be asked.
            for (node, addr) in identity.members.iter().filter(|(node, _)| **node != identity.node_id) {
                match network.links().state(*node) {
                    Ok(()) => self.former.note_cluster(addr, &identity.cluster),
                    Err(LinkError::OtherCluster { theirs, .. }) => self.former.note_cluster(addr, &theirs),
                    Err(_) => {}
                }
            }
            if let Err(error) = self.former.look_around(&mut channels).await {
                return self.fail(error.into());
            }
            sleep(if self.former.is_sound() { LOOK_INTERVAL_SOUND } else { LOOK_INTERVAL }).await;
        }
    }
}
