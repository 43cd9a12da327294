-- Of a user who is to be erased nothing is shown from that moment on: browsers and deliveries neither.
ALTER POLICY push_subscription_api ON push_subscription
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = push_subscription.tenant_id AND e.user_id = push_subscription.owner))
    WITH CHECK (tenant_id = current_tenant());
ALTER POLICY delivery_api ON delivery
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = delivery.tenant_id AND e.user_id = delivery.owner));
