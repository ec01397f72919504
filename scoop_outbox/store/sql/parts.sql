-- What statements of several files say alike.

-- part: sender
-- The home that speaks, `h`, in a control message.
json_build_object('id', h.id, 'name', h.name, 'replyTo', h.prefix || 'control.' || h.name, 'at', clock_timestamp())
