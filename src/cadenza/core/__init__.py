"""What every floor may know: specs, the types that flow, the errors."""
