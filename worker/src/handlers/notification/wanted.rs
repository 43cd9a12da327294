//! Whether a message is wanted, asked by the job that is about to send it: what its user said meanwhile counts.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use shared::{
    job::Failure,
    kinds::Told,
    ledger::{
        deliveries::Channel,
        notifications::{self, Wants},
    },
    schedule::Zone,
    tenant::{NotificationType, Tenant, Way},
};

use super::super::JobContext;

/// Whether a message is to be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Wanted {
    /// It is.
    Yes,
    /// It is not sent, for a reason in a word and in words.
    No(&'static str, &'static str),
    /// Not before then: its user wants to be left alone.
    Later(DateTime<Utc>),
}

impl Wanted {
    /// How long a message waits, from now.
    pub(in super::super) fn pause(until: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
        // A second more than none: who comes back in the same moment would be put off again.
        (until - now).to_std().unwrap_or_default().max(Duration::from_secs(1))
    }
}

/// Asks.
pub(in super::super) async fn wanted(
    context: &JobContext,
    tenant: &Tenant,
    told: &Told,
    user: &str,
    channel: Channel,
) -> Result<Wanted, Failure> {
    let (services, job) = (&context.services, &context.job);
    let now = services.clock.now();
    if told.send_by.is_some_and(|by| now > by) {
        return Ok(Wanted::No("too_late", "its `send_by` had passed before it could be sent"));
    }
    let Some(sort) = tenant.manifest.notification(&told.sort) else {
        return Ok(Wanted::No("type_unknown", "the product's manifest has no such type of notification any more"));
    };
    if sort.critical {
        return Ok(Wanted::Yes);
    }
    let wants = notifications::wants(&services.pool, tenant.id, user, sort.category(&told.sort)).await?;
    let asked = said(&sort, &wants, channel, now);
    if asked != Wanted::Yes {
        return Ok(asked);
    }
    if let Some(throttle) = sort.throttle {
        let window = TimeDelta::minutes(throttle.window_minutes.into());
        let what = (tenant.id, user, told.sort.as_str(), channel);
        if !notifications::may_send(&services.pool, what, job.id, (throttle.most, window), now).await? {
            return Ok(Wanted::No("throttled", "the user was sent as many of this type lately as the product allows"));
        }
    }
    Ok(Wanted::Yes)
}

/// What a user says of a message that is not critical.
fn said(sort: &NotificationType, wants: &Wants, channel: Channel, now: DateTime<Utc>) -> Wanted {
    let (is_on, said, way) = match channel {
        Channel::Push => (wants.push_on, wants.push, Way::Push),
        Channel::Email => (wants.mail_on, wants.mail, Way::Email),
        Channel::InApp => (true, None, Way::InApp),
    };
    if !is_on {
        return Wanted::No("channel_off", "the user has switched this channel off");
    }
    if !sort.goes_by(way, said) {
        return Wanted::No("preference", "the user wants no such notification by this channel");
    }
    let zone = wants.time_zone.as_deref().and_then(Zone::find).or_else(|| Zone::find("UTC"));
    let until = wants.quiet_hours.zip(zone).and_then(|(hours, zone)| hours.until(now, &zone));
    until.map_or(Wanted::Yes, Wanted::Later)
}

#[cfg(test)]
mod tests {
    use shared::people::{Minute, QuietHours};

    use super::*;

    #[test]
    fn a_switch_goes_before_a_preference_and_that_before_quiet_hours() {
        let sort = NotificationType::built_in("comment").unwrap();
        let now: DateTime<Utc> = "2026-06-01T23:00:00Z".parse().unwrap();
        let quiet = QuietHours { from: Minute::new(22 * 60).unwrap(), to: Minute::new(7 * 60).unwrap() };
        let on = Wants { push_on: true, mail_on: true, ..Wants::default() };
        assert_eq!(said(&sort, &on, Channel::Push, now), Wanted::Yes);
        let resting = Wants { quiet_hours: Some(quiet), time_zone: Some("Asia/Tokyo".into()), ..on.clone() };
        assert_eq!(said(&sort, &resting, Channel::Push, now), Wanted::Yes, "eight in the morning there");
        let resting = Wants { time_zone: None, ..resting };
        assert_eq!(said(&sort, &resting, Channel::Push, now), Wanted::Later("2026-06-02T07:00:00Z".parse().unwrap()));
        let muted = Wants { push: Some(false), ..resting };
        assert!(matches!(said(&sort, &muted, Channel::Push, now), Wanted::No("preference", _)));
        let off = Wants { push_on: false, ..muted };
        assert!(matches!(said(&sort, &off, Channel::Push, now), Wanted::No("channel_off", _)));
        assert!(matches!(said(&sort, &on, Channel::Email, now), Wanted::No("preference", _)), "not chosen");
    }
}
