"""The controller: a gateway that serves models and a control loop that places their experts."""
