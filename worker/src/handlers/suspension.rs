//! `suspension.end`: somebody's suspension is over, and they are told so.
//!
//! What must stay true: it ends the one suspension that it names, once, and tells of it once: both are one transaction.

use shared::{
    job::{Interrupt, JobId, Success},
    kinds::SuspensionEnd,
    ledger::{
        LedgerError,
        moderation::{self, Ended, ModerationAction, Notice},
    },
};

use super::JobContext;

/// Ends a suspension.
pub(super) async fn run(payload: SuspensionEnd, context: JobContext) -> Result<Success, Interrupt> {
    let (services, tenant) = (&context.services, context.job.tenant);
    let now = services.clock.now();
    let mut transaction = services.pool.begin().await.map_err(LedgerError::from)?;
    match moderation::end(&mut transaction, tenant, payload.suspension, services.clock.new_id(), now).await? {
        Ended::Gone => {}
        // A clock that went back.
        Ended::NotBefore(until) => return Err(Interrupt::Snoozed((until - now).to_std().unwrap_or_default())),
        Ended::Now(user) => {
            let notice = Notice { user: &user, action: ModerationAction::End, content: None, until: None, notes: None };
            moderation::tell_user(&mut transaction, tenant, JobId(services.clock.new_id()), notice, now).await?;
        }
    }
    transaction.commit().await.map_err(LedgerError::from)?;
    Ok(Success::default())
}
