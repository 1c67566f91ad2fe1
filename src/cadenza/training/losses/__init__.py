"""What training minimises: functions where there is no state, modules where there is."""
